"""The multiplexer of connections."""

from __future__ import annotations

import struct
from typing import Any

import trio

from tests.fuzz.decoder import Decoder
from tests.fuzz.peer import SELF, in_trio


class _Secured:
    """A connection that brings `data` and then ends; what is written to it is dropped."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.is_initiator = False

    async def read(self, n: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        size = len(self._data) if n is None else n
        received, self._data = self._data[:size], self._data[size:]
        return received

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        return None

    def get_remote_address(self) -> None:
        return None


def read_muxer_frames(data: bytes) -> None:
    from libp2p.peer.id import ID

    from edgellm.p2p.muxer import HardenedYamux
    from edgellm.p2p.quiet import quiet_libp2p

    quiet_libp2p()

    async def serve() -> None:
        connection = HardenedYamux(_Secured(data), ID.from_base58(SELF.peer), is_initiator=False)
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                while True:
                    try:
                        stream = await connection.accept_stream()
                    except Exception:  # noqa: BLE001 - the connection is over
                        return
                    nursery.start_soon(_drain, stream)

            nursery.start_soon(accept)
            await connection.start()
            nursery.cancel_scope.cancel()

    in_trio(serve)


async def _drain(stream: Any) -> None:
    try:
        while await stream.read(1000):
            pass
    except Exception:  # noqa: BLE001 - any end of a stream is one
        return


def _yamux(kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack("!BBHII", 0, kind, flags, stream, length) + body


YAMUX = [
    _yamux(1, 1, 1, 0) + _yamux(0, 0, 1, 5, b"hello") + _yamux(1, 4, 1, 0),
    _yamux(0, 1, 3, 4, b"data") + _yamux(1, 8, 3, 0) + _yamux(2, 1, 0, 7) + _yamux(3, 0, 0, 0),
    _yamux(1, 1, 5, 0) + _yamux(1, 2, 5, 1 << 20) + _yamux(0, 4, 5, 2, b"ab"),
]


DECODERS = (Decoder("muxer frames", read_muxer_frames, lambda: list(YAMUX), share=2),)
