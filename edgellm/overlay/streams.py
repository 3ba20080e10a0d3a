"""In the node: joins a libp2p stream to the carrier's Unix socket.

Nothing is decided here. The frames are the two carriers' own (`edgellm.overlay.framing`), and their windows bound
what is under way, so this side can always go on reading, as py-libp2p demands.
"""

from __future__ import annotations

import socket

import trio

from edgellm.errors import NetworkError
from edgellm.overlay.framing import MAX_DATA_BYTES
from edgellm.p2p.network import Stream

# The carrier always reads; a write that it does not take for so long means that it is stuck.
_CARRIER_STUCK_S = 10.0


async def join_stream(stream: Stream, carrier: socket.socket) -> None:
    """Move bytes both ways until either end closes, then close both. Errors of either end are an end."""
    local = trio.SocketStream(trio.socket.from_stdlib_socket(carrier))
    in_order = False
    try:
        async with trio.open_nursery() as nursery:

            async def to_carrier() -> None:
                while data := await stream.receive_some(MAX_DATA_BYTES):
                    with trio.fail_after(_CARRIER_STUCK_S):
                        await local.send_all(data)
                nursery.cancel_scope.cancel()

            nursery.start_soon(to_carrier)
            while data := await local.receive_some(MAX_DATA_BYTES):
                await stream.send_all(bytes(data))
            nursery.cancel_scope.cancel()
        in_order = True
    except* (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError, NetworkError):
        pass  # The carriers see the connection end before CLOSED, which is all there is to say.
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
            await local.aclose()
            await (stream.aclose() if in_order else stream.reset())
