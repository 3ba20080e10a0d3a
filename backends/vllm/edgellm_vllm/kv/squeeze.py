"""Values of a KV cache in three quarters of their bytes, and exactly the same again.

A bfloat16 has its sign and most of its exponent in the upper byte, where few values are frequent, and mantissa in the lower
one, which looks random. The upper bytes alone are compressed (as ZipNN does with weights: Hershcovitch et al., 2024); on the
caches of a trained and of a random model this leaves 0.68 to 0.70 of the bytes.

    kind (1) | values                                                        kind 0: as they are
    kind (1) | length (4) | lower bytes | compressed upper bytes | zeros     kind 1: three quarters, always

The length of a compressed text says something about it, and whoever has a prompt and the model could compare: a sealed piece
must have one of two lengths, whatever is in it. Hence the zeros.
"""

from __future__ import annotations

import struct

import zstandard

_PLAIN, _SQUEEZED = b"\x00", b"\x01"
_LENGTH = struct.Struct("!I")
_LEVEL = 1
"""Higher ones save one percent more and take several times as long."""
TWO_BYTES = ("bfloat16",)
"""Types that are worth it: float16 has less exponent, float32 more mantissa."""


def squeeze(content: bytes, dtype: str) -> bytes:
    """`content`, values of `dtype`, in `squeezed_bytes` where that is enough."""
    import numpy as np

    squeezed = squeezed_bytes(len(content), dtype)
    room = squeezed - 1 - _LENGTH.size - len(content) // 2
    if squeezed <= len(content) and room > 0:
        # Shifts, for bytes that are taken two by two from memory cost ten times as much.
        values = np.frombuffer(content, "<u2")
        upper = zstandard.ZstdCompressor(level=_LEVEL).compress((values >> 8).astype(np.uint8).tobytes())
        if len(upper) <= room:
            length = _LENGTH.pack(len(upper))
            lower = values.astype(np.uint8).tobytes()
            return b"".join((_SQUEEZED, length, lower, upper, bytes(room - len(upper))))
    return _PLAIN + content


def unsqueeze(squeezed: bytes, size_bytes: int) -> bytes:
    """The `size_bytes` of values. Raises ValueError where it is no squeezed form of so many."""
    import numpy as np

    kind, content = squeezed[:1], memoryview(squeezed)[1:]
    if kind == _PLAIN and len(content) == size_bytes:
        return bytes(content)
    half = size_bytes // 2
    if kind != _SQUEEZED or size_bytes % 2 or len(content) < _LENGTH.size + half:
        raise ValueError(f"{len(squeezed)} bytes are no form of {size_bytes}")
    (length,) = _LENGTH.unpack(content[: _LENGTH.size])
    upper_at = _LENGTH.size + half
    compressed = content[upper_at : upper_at + length]
    try:
        # Read first: what it says is what the decompressor takes memory for.
        if zstandard.get_frame_parameters(compressed).content_size != half:
            raise ValueError(f"compressed values that are not {half} bytes")
        upper = zstandard.ZstdDecompressor().decompress(compressed)
    except zstandard.ZstdError as error:
        raise ValueError(f"values that cannot be decompressed: {error}") from error
    values = np.frombuffer(upper, np.uint8).astype("<u2")
    values <<= 8
    values |= np.frombuffer(content[_LENGTH.size : upper_at], np.uint8)
    return values.tobytes()


def squeezed_bytes(size_bytes: int, dtype: str) -> int:
    """The length of squeezed values; of types that are left as they are, the length of those."""
    if dtype not in TWO_BYTES or size_bytes % 4:
        return 1 + size_bytes
    return 1 + size_bytes * 3 // 4


def possible_bytes(size_bytes: int, dtype: str) -> frozenset[int]:
    """The lengths that `squeeze` may return."""
    return frozenset((1 + size_bytes, squeezed_bytes(size_bytes, dtype)))
