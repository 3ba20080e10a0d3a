"""Where the chunks of an answer end (RFC 9112, 7.1), so that its bytes can be passed on as they are. Pure."""

from __future__ import annotations

_END = b"\r\n"
_DIGITS = frozenset(b"0123456789abcdefABCDEF")
_MAX_LINE_BYTES = 16
HELD_BYTES = 64 << 10
"""A chunk up to this length is passed on whole or not at all."""


class _NoChunk(Exception):
    pass


class Chunks:
    """Of one answer. Strict: no extensions, no trailers, for whatever two readers could read in two ways would let an engine
    say something in the name of the next answer.
    """

    def __init__(self) -> None:
        self._held = b""
        self._left_bytes = 0
        """Of a large chunk that is passed on as it comes."""
        self._closes = False
        """Whether the end of such a chunk's data is next."""
        self.ended = False
        self.broken = False
        """What came is no chunk."""

    @property
    def within_one(self) -> bool:
        """Whether a part of a chunk has been passed on."""
        return self._left_bytes > 0 or self._closes

    def take(self, data: bytes) -> bytes:
        """What can be passed on now: all but the chunk that is not whole yet, and but the last one, which is empty.

        What comes after that, or after what is no chunk, is dropped.
        """
        if self._held:
            data = self._held + data
            self._held = b""
        at, size = 0, len(data)
        while at < size and not self.ended and not self.broken:
            if self._left_bytes:
                taken = min(self._left_bytes, size - at)
                self._left_bytes -= taken
                self._closes = not self._left_bytes
                at += taken
                continue
            try:
                after = self._after_data(data, at) if self._closes else self._after_chunk(data, at)
            except _NoChunk:
                self.broken = True
                break
            if after is None:
                self._held = data[at:]
                break
            at = after
        return data[:at]

    def _after_data(self, data: bytes, at: int) -> int | None:
        end = data[at : at + 2]
        if end != _END[: len(end)]:
            raise _NoChunk
        if len(end) < 2:
            return None
        self._closes = False
        return at + 2

    def _after_chunk(self, data: bytes, at: int) -> int | None:
        """Where the next one begins; None where this one is not whole yet."""
        line_end = data.find(_END, at, at + _MAX_LINE_BYTES)
        if line_end < 0:
            begun = data[at:].removesuffix(b"\r")
            if len(begun) >= _MAX_LINE_BYTES or not _DIGITS.issuperset(begun):
                raise _NoChunk
            return None
        line = data[at:line_end]
        if not line or not _DIGITS.issuperset(line):
            raise _NoChunk
        length = int(line, 16)
        begin = line_end + 2
        after = begin + length + 2
        if length > HELD_BYTES:
            self._left_bytes = length
            return begin
        if data[begin + length : after] != _END[: max(0, len(data) - begin - length)]:
            raise _NoChunk
        if after > len(data):
            return None
        if not length:
            self.ended = True
            return at
        return after
