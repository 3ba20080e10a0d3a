"""Typed messages over a stream: each a protobuf with its length (an unsigned varint) before it."""

from __future__ import annotations

from typing import TypeVar

import trio
from google.protobuf.message import DecodeError, Message

from edgellm.errors import NetworkError, ProtocolViolation
from edgellm.p2p.network import Stream
from edgellm.p2p.varint import decode_varint, encode_varint

MAX_MESSAGE_BYTES = 1 << 20

M = TypeVar("M", bound=Message)


class MessageStream:
    """Sends and receives protobuf messages over `stream`; raw bytes may follow by `receive_some`.

    One task may send while another receives; not two of the same kind. A `receive` that was cancelled or timed out has consumed
    nothing, and may be called again; after any other failure give the stream up.
    """

    def __init__(self, stream: Stream, *, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.stream = stream
        self._max_bytes = max_bytes
        self._received = bytearray()

    @property
    def peer(self) -> str:
        """The proven id of the other side."""
        return self.stream.peer

    async def send(self, message: Message, *, timeout_s: float = 10.0) -> None:
        """Sends one message.

        Raises NetworkError when the peer is gone or does not take it within `timeout_s`, ValueError when the
        message is over the limit that the other side would refuse.
        """
        body = message.SerializeToString()
        name = type(message).__name__
        if len(body) > self._max_bytes:
            raise ValueError(f"{name} of {len(body)} bytes is over the limit of {self._max_bytes}")
        with trio.move_on_after(timeout_s) as deadline:
            await self.stream.send_all(encode_varint(len(body)) + body)
        if deadline.cancelled_caught:
            raise NetworkError(f"peer {self.peer} did not take a {name} within {timeout_s:g} s")

    async def receive(self, kind: type[M], *, timeout_s: float = 10.0, max_bytes: int | None = None) -> M:
        """The next message, which must be a `kind`.

        Raises NetworkError when the stream ends or nothing complete comes within `timeout_s` (math.inf: wait
        for ever), ProtocolViolation when the length is over the limit (before the body is read) or the body
        is no `kind`.
        """
        name = kind.__name__
        body = b""
        with trio.move_on_after(timeout_s) as deadline:
            body = await self._take(name, self._max_bytes if max_bytes is None else max_bytes)
        if deadline.cancelled_caught:
            raise NetworkError(f"peer {self.peer} sent no {name} within {timeout_s:g} s")
        try:
            return kind.FromString(body)
        except DecodeError as error:
            raise ProtocolViolation(f"peer {self.peer} sent something that is no {name}") from error

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """Raw bytes after the last message; b"" at the end. For protocols that turn into a byte stream."""
        if self._received:
            return self._pop(min(max_bytes, len(self._received)))
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Ends the sending side."""
        await self.stream.aclose()

    async def reset(self) -> None:
        """Drops both directions at once."""
        await self.stream.reset()

    async def _take(self, name: str, limit: int) -> bytes:
        while True:
            try:
                decoded = decode_varint(self._received)
            except ValueError as error:
                raise ProtocolViolation(f"peer {self.peer} sent a malformed length for a {name}") from error
            if decoded is not None:
                length, start = decoded
                if length > limit:
                    raise ProtocolViolation(
                        f"peer {self.peer} announced a {name} of {length} bytes; the limit is {limit}"
                    )
                if len(self._received) >= start + length:
                    return self._pop(start + length)[start:]
            await self._fill(name)

    async def _fill(self, name: str) -> None:
        chunk = await self.stream.receive_some()
        if not chunk:
            raise NetworkError(f"peer {self.peer} ended the stream where a {name} was expected")
        self._received += chunk

    def _pop(self, count: int) -> bytes:
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken
