"""Where chunks end, however they are cut on their way."""

from __future__ import annotations

import random

import pytest

from edgellm.gateway.chunks import HELD_BYTES, Chunks


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize("seed", range(40))
def test_all_is_passed_on_but_the_end_however_it_is_cut(seed: int) -> None:
    chosen = random.Random(seed)
    sizes = [chosen.choice((1, 2, 15, 16, 300, HELD_BYTES, HELD_BYTES + 1, 200_000)) for _ in range(12)]
    body = b"".join(chunk(chosen.randbytes(size)) for size in sizes)
    chunks, passed, rest = Chunks(), b"", body + b"0\r\n\r\n"
    while rest:
        count = chosen.choice((1, 2, 3, 17, 400, 70_000))
        passed += chunks.take(rest[:count])
        rest = rest[count:]
    assert chunks.ended
    assert passed == body


def test_a_small_chunk_is_passed_on_whole_or_not_at_all() -> None:
    chunks, event = Chunks(), chunk(b"x" * HELD_BYTES)
    assert chunks.take(event + event[:-1]) == event
    assert not chunks.within_one
    assert chunks.take(event[-1:]) == event


def test_of_a_large_one_parts_are_passed_on() -> None:
    chunks, event = Chunks(), chunk(b"x" * (HELD_BYTES + 1))
    assert chunks.take(event[:1000]) == event[:1000]
    assert chunks.within_one
    assert chunks.take(event[1000:-1]) == event[1000:-2]
    assert chunks.within_one
    assert chunks.take(event[-1:] + chunk(b"y")) == b"\r\n" + chunk(b"y")
    assert not chunks.within_one


def test_what_follows_the_end_is_dropped() -> None:
    chunks = Chunks()
    assert chunks.take(chunk(b"x") + b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n") == chunk(b"x")
    assert chunks.ended
    assert chunks.take(b"more") == b""


@pytest.mark.parametrize(
    "said",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\nx\r\n",
        b" 1\r\nx\r\n",
        b"0x1\r\nx\r\n",
        b"1_0\r\n",
        b"1;extension\r\nx\r\n",
        b"1\nx\n",
        b"1\r\nxy\r\n",
        b"1\r\nx\rz",
        b"3\r\nabcd",
        b"00000000000000000001\r\nx\r\n",
        b"no length here at all",
        b"0\r\nTrailer: x\r\n\r\n",
        b"0\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"10001\r\n" + b"x" * 0x10001 + b"yz",
    ],
)
def test_what_is_no_chunk_is_refused(said: bytes) -> None:
    event = chunk(b"before")
    chunks = Chunks()
    assert chunks.take(event + said).startswith(event)
    assert chunks.broken
    bit_by_bit = Chunks()
    for byte in said:
        bit_by_bit.take(bytes([byte]))
    assert bit_by_bit.broken
    assert bit_by_bit.take(event) == b""
