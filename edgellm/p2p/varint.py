"""Unsigned varints, the lengths of libp2p: seven bits a byte, lowest first, at most nine bytes."""

from __future__ import annotations

_MAX_BYTES = 9  # multiformats unsigned-varint specification


def encode_varint(value: int) -> bytes:
    """The shortest encoding of a number that is 0 or more."""
    if not 0 <= value < 1 << (7 * _MAX_BYTES):
        raise ValueError(f"{value} does not fit an unsigned varint")
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode_varint(data: bytes | bytearray) -> tuple[int, int] | None:
    """The number at the start of `data` and how many bytes it takes; None when `data` ends within it.

    Raises ValueError for more than nine bytes or an encoding that is not the shortest.
    """
    value = 0
    for index, byte in enumerate(data[:_MAX_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index > 0:
                raise ValueError("not the shortest encoding")
            return value, index + 1
    if len(data) >= _MAX_BYTES:
        raise ValueError(f"longer than {_MAX_BYTES} bytes")
    return None
