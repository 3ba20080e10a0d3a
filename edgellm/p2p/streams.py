"""libp2p's streams as the `Stream` of the border."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import trio
from libp2p.network.stream.exceptions import StreamEOF

from edgellm.errors import NetworkError

_CLOSE_S = 1.0


class LibP2PStream:
    """One negotiated libp2p stream; what it promises is written at `edgellm.p2p.network.Stream`."""

    def __init__(self, net_stream: Any) -> None:
        self._net_stream = net_stream
        self._peer = str(net_stream.muxed_conn.peer_id)

    @property
    def peer(self) -> str:
        return self._peer

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._net_stream.write(bytes(data))
        except Exception as error:
            raise NetworkError(f"cannot send to peer {self._peer}: {_why(error)}") from error

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        try:
            received: bytes = await self._net_stream.read(max_bytes)
        except StreamEOF:
            return b""
        except Exception as error:
            raise NetworkError(f"cannot receive from peer {self._peer}: {_why(error)}") from error
        return received

    async def aclose(self) -> None:
        await self._end(self._net_stream.close)

    async def reset(self) -> None:
        await self._end(self._net_stream.reset)

    async def _end(self, how: Any) -> None:
        deadline = trio.current_time() + _CLOSE_S
        with suppress(Exception), trio.CancelScope(deadline=deadline, shield=True):
            await how()  # a stream that cannot be closed is already gone


def _why(error: BaseException) -> str:
    texts = []
    link: BaseException | None = error
    while link is not None:
        texts.append(str(link))
        link = link.__cause__
    return next((text for text in reversed(texts) if text), "the stream was reset")
