"""Framing and flow control of an overlay connection over a libp2p stream. Pure: bytes in, frames out.

A libp2p stream has no half-close that can be told from a dead peer, and breaks when its reader pauses for 5 s.
So a connection on it is made of frames

    1 byte   kind
    4 bytes  number: DATA: bytes that follow; WINDOW: bytes of new credit; others: 0

and each side has at most `WINDOW_BYTES` of the other's data in hand: who reads the stream never has to pause.
OPENED (or RESET) is the acceptor's first frame. FIN ends one direction; CLOSED is the last frame of a side that
has both sent and delivered all. An end of the stream before CLOSED is a broken connection.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from edgellm.errors import ProtocolViolation

WINDOW_BYTES = 2 << 20
MAX_DATA_BYTES = 64 << 10
_HEADER = struct.Struct("!BI")


class FrameKind(IntEnum):
    OPENED = 1
    DATA = 2
    WINDOW = 3
    FIN = 4
    RESET = 5
    CLOSED = 6


@dataclass(frozen=True)
class Frame:
    """`credit_bytes` is of a WINDOW frame, `data` of a DATA frame."""

    kind: FrameKind
    data: bytes = b""
    credit_bytes: int = 0

    def encode(self) -> bytes:
        """The frame as it goes over the stream."""
        number = self.credit_bytes if self.kind is FrameKind.WINDOW else len(self.data)
        return _HEADER.pack(self.kind, number) + self.data


class FrameDecoder:
    """Cuts a byte stream into frames; holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes | memoryview) -> list[Frame]:
        """The frames that are complete now, in order. Raises `ProtocolViolation`."""
        self._buffer += received
        frames = []
        position = 0
        while len(self._buffer) - position >= _HEADER.size:
            number_of_kind, number = _HEADER.unpack_from(self._buffer, position)
            kind = _check(number_of_kind, number)
            end = position + _HEADER.size + (number if kind is FrameKind.DATA else 0)
            if len(self._buffer) < end:
                break
            data = bytes(self._buffer[position + _HEADER.size : end])
            frames.append(Frame(kind, data, number if kind is FrameKind.WINDOW else 0))
            position = end
        del self._buffer[:position]
        return frames


class SendWindow:
    """How much this side may still send."""

    def __init__(self) -> None:
        self.credit_bytes = WINDOW_BYTES

    def sent(self, count: int) -> None:
        """`count` bytes of data went out."""
        if count > self.credit_bytes:
            raise ValueError(f"sent {count} bytes on a credit of {self.credit_bytes}")
        self.credit_bytes -= count

    def granted(self, count: int) -> None:
        """A WINDOW frame came. Raises `ProtocolViolation` where it grants what was never sent."""
        if self.credit_bytes + count > WINDOW_BYTES:
            raise ProtocolViolation("A peer granted more credit than its window holds")
        self.credit_bytes += count


class ReceiveWindow:
    """How much the other side may still send, and when to tell it of new room."""

    def __init__(self) -> None:
        self._open_bytes = WINDOW_BYTES
        self._consumed_bytes = 0

    def received(self, count: int) -> None:
        """`count` bytes of data came. Raises `ProtocolViolation` where they exceed the window."""
        if count > self._open_bytes:
            raise ProtocolViolation("A peer sent more than its window allows")
        self._open_bytes -= count

    def consumed(self, count: int) -> int:
        """`count` bytes went on to the cell: the credit to grant now, 0 while it is too little to tell."""
        self._consumed_bytes += count
        if self._consumed_bytes < WINDOW_BYTES // 4:
            return 0
        credit, self._consumed_bytes = self._consumed_bytes, 0
        self._open_bytes += credit
        return credit


def _check(number_of_kind: int, number: int) -> FrameKind:
    try:
        kind = FrameKind(number_of_kind)
    except ValueError as error:
        raise ProtocolViolation(f"A peer sent an overlay frame of unknown kind {number_of_kind}") from error
    limits = {FrameKind.DATA: MAX_DATA_BYTES, FrameKind.WINDOW: WINDOW_BYTES}
    if number > limits.get(kind, 0):
        raise ProtocolViolation(f"A peer sent an overlay {kind.name} frame of {number}")
    return kind
