"""Typed messages over a stream: each a protobuf with a 4-byte big-endian length before it."""

from __future__ import annotations

import struct
from typing import TypeVar

import trio
from google.protobuf.message import DecodeError, Message

from edgellm.errors import NetworkError, ProtocolViolation
from edgellm.p2p.network import Stream

MAX_MESSAGE_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")

M = TypeVar("M", bound=Message)


class MessageStream:
    """Sends and receives protobuf messages over `stream`; raw bytes may follow through `receive_some`.

    One task may send while another receives; not two of the same kind. A `receive` that failed or was cancelled
    may have consumed half a message: give the stream up.
    """

    def __init__(self, stream: Stream, *, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.stream = stream
        self._max_bytes = max_bytes
        self._received = bytearray()

    @property
    def peer(self) -> str:
        return self.stream.peer

    async def send(self, message: Message, *, timeout_s: float = 10.0) -> None:
        """Sends one message. Raises NetworkError when the peer is gone or does not take it within `timeout_s`."""
        body = message.SerializeToString()
        if len(body) > self._max_bytes:
            raise ValueError(
                f"{type(message).__name__} of {len(body)} bytes is over the limit of {self._max_bytes}"
            )
        with trio.move_on_after(timeout_s) as deadline:
            await self.stream.send_all(_LENGTH.pack(len(body)) + body)
        if deadline.cancelled_caught:
            raise NetworkError(
                f"peer {self.peer} did not take a {type(message).__name__} within {timeout_s:g} s"
            )

    async def receive(self, kind: type[M], *, timeout_s: float = 10.0, max_bytes: int | None = None) -> M:
        """The next message, which must be a `kind`.

        Raises NetworkError when the stream ends or nothing complete comes within `timeout_s` (math.inf: wait for
        ever), ProtocolViolation when the length is over the limit (before its body is read) or the body is no `kind`.
        """
        limit = self._max_bytes if max_bytes is None else max_bytes
        body = b""
        with trio.move_on_after(timeout_s) as deadline:
            (length,) = _LENGTH.unpack(await self._take(_LENGTH.size, kind))
            if length > limit:
                raise ProtocolViolation(
                    f"peer {self.peer} announced a {kind.__name__} of {length} bytes; the limit is {limit}"
                )
            body = await self._take(length, kind)
        if deadline.cancelled_caught:
            raise NetworkError(f"peer {self.peer} sent no {kind.__name__} within {timeout_s:g} s")
        try:
            return kind.FromString(body)
        except DecodeError as error:
            raise ProtocolViolation(f"peer {self.peer} sent something that is no {kind.__name__}") from error

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """Raw bytes after the last message; b"" at the end. For protocols that turn to a byte stream."""
        if self._received:
            taken = bytes(self._received[:max_bytes])
            del self._received[:max_bytes]
            return taken
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def reset(self) -> None:
        await self.stream.reset()

    async def _take(self, count: int, kind: type[Message]) -> bytes:
        while len(self._received) < count:
            chunk = await self.stream.receive_some()
            if not chunk:
                raise NetworkError(f"peer {self.peer} ended the stream where a {kind.__name__} was expected")
            self._received += chunk
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken
