"""Inputs out of inputs: damage as networks do it, and as attackers do, who know what the bytes mean."""

from __future__ import annotations

import random
from collections.abc import Sequence

MAX_BYTES = 8192
_NUMBERS = tuple(
    number.to_bytes(width, order)
    for width in (1, 2, 4, 8)
    for number in (0, 1, (1 << 8 * width - 1) - 1, 1 << 8 * width - 1, (1 << 8 * width) - 1)
    for order in ("big", "little")
)
_VARINTS = (
    b"\x00",
    b"\x01",
    b"\x7f",
    b"\x80\x01",
    b"\xff\xff\x03",
    b"\xff" * 9 + b"\x01",
    b"\xff" * 12,
    b"\x80" * 9 + b"\x00",
)
_TEXTS = (
    b"\r\n",
    b"\r\n\r\n",
    b"\x00",
    b"\x1b[2J",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"../../etc/passwd",
    b"/p2p/",
    b"/ip4/127.0.0.1/tcp/1",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b'{"a":' * 50,
    b"[" * 300,
    b"1e999",
    b"NaN",
    b"9" * 400,
    "\u202e\u00e9\U0001f600".encode(),
)


def mutate(data: bytes, chance: random.Random, corpus: Sequence[bytes] = ()) -> bytes:
    """`data` with one to four things changed, at most `MAX_BYTES`."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 4))):
        chance.choice(_WAYS)(changed, chance, corpus)
    return bytes(changed[:MAX_BYTES])


def _place(data: bytearray, chance: random.Random) -> int:
    return chance.randrange(len(data) + 1)


def _flip(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _byte(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.randrange(256)


def _insert(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    at = _place(data, chance)
    data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 16, 200)))


def _token(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    at, token = _place(data, chance), chance.choice(chance.choice((_NUMBERS, _VARINTS, _TEXTS)))
    data[at : at + (len(token) if chance.random() < 0.5 else 0)] = token


def _cut(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    at = _place(data, chance)
    del data[at : at + chance.choice((1, 2, 8, 64, MAX_BYTES))]


def _repeat(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    at = _place(data, chance)
    part = bytes(data[at : at + chance.choice((1, 4, 32, 256))])
    data[at:at] = part * chance.choice((1, 2, 16))


def _swap(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    at, other = sorted((_place(data, chance), _place(data, chance)))
    data[at:] = data[other:] + data[at:other]


def _splice(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    if corpus:
        other = chance.choice(corpus)
        data[_place(data, chance) :] = other[chance.randrange(len(other) + 1) :]


def _field(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    """A field of protobuf: number and wire type, then what such a one holds."""
    number, wire_type = chance.randrange(1, 20), chance.randrange(6)
    content = {
        0: chance.choice(_VARINTS),
        1: chance.randbytes(8),
        2: bytes([length := chance.randrange(40)]) + chance.randbytes(length),
        5: chance.choice((chance.randbytes(4), b"\x00\x00\xc0\x7f")),
    }.get(wire_type, b"")
    at = _place(data, chance)
    data[at:at] = _varint(number << 3 | wire_type) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


_WAYS = (_flip, _byte, _insert, _token, _token, _cut, _repeat, _swap, _splice, _field)
