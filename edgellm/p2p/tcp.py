"""TCP under libp2p, so that a task can be cancelled in the middle of a write without harm to the connection.

All streams to a peer share one encrypted connection, in which a message that was begun must be finished: half of
one makes everything after it unreadable. py-libp2p 0.8.1 leaves that half when the writing task is cancelled, which
every deadline on a send does.
"""

from __future__ import annotations

from typing import Any

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.transport.tcp import tcp


class SteadyTCPStream(TrioTCPStream):
    """What a cancelled writer leaves unsent goes out before whatever is written next."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._unsent = bytearray()

    async def write(self, data: bytes) -> None:
        """Sends all of `data`. Raises ConnectionClosedError when either side has closed the connection."""
        self._unsent += data
        async with self.write_lock:
            while self._unsent:
                try:
                    sent = await self.stream.socket.send(self._unsent)
                except (OSError, trio.ClosedResourceError) as error:
                    raise ConnectionClosedError(
                        f"the connection is closed: {error}", transport="tcp"
                    ) from error
                del self._unsent[:sent]


def transport() -> Any:
    """libp2p's TCP transport, on steady streams."""
    tcp.TrioTCPStream = SteadyTCPStream  # the name by which it makes them
    return tcp.TCP()
