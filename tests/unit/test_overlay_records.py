"""Sealed records: what arrives is what was sent, in order, or an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.overlay.records import (
    HEADER_BYTES,
    MAX_PLAINTEXT_BYTES,
    TAG_BYTES,
    BadRecord,
    LinkKeys,
    Opener,
    RecordKind,
    Sealer,
)

KEY = bytes(range(16))


@given(st.lists(st.binary(max_size=2000), max_size=10))
def test_round_trip(messages: list[bytes]) -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    for message in messages:
        header, body = sealer.seal(RecordKind.DATA, message)
        assert len(header) == HEADER_BYTES
        assert opener.parse(header) == (RecordKind.DATA, len(body))
        assert bytes(opener.open(header, body)) == message


def test_largest_record() -> None:
    header, body = Sealer(KEY).seal(RecordKind.DATA, bytes(MAX_PLAINTEXT_BYTES))
    opener = Opener(KEY)
    assert opener.parse(header) == (RecordKind.DATA, MAX_PLAINTEXT_BYTES + TAG_BYTES)
    assert bytes(opener.open(header, body)) == bytes(MAX_PLAINTEXT_BYTES)


@given(st.integers(0, HEADER_BYTES + 5 + TAG_BYTES - 1), st.integers(1, 255))
def test_any_changed_byte_is_seen(position: int, change: int) -> None:
    header, body = Sealer(KEY).seal(RecordKind.DATA, b"hello")
    record = bytearray(header + body)
    record[position] ^= change
    opener = Opener(KEY)
    with pytest.raises(BadRecord):
        opener.parse(record[:HEADER_BYTES])
        opener.open(record[:HEADER_BYTES], record[HEADER_BYTES:])


def test_repeated_dropped_or_reordered_records_are_seen() -> None:
    sealer = Sealer(KEY)
    first, second = (sealer.seal(RecordKind.DATA, text) for text in (b"first", b"second"))
    opener = Opener(KEY)
    with pytest.raises(BadRecord):
        opener.open(*second)
    opener.open(*first)
    with pytest.raises(BadRecord):
        opener.open(*first)
    opener.open(*second)


def test_the_other_direction_has_another_key() -> None:
    keys = LinkKeys.make()
    assert keys.forward != keys.backward
    assert keys.reversed().forward == keys.backward
    with pytest.raises(BadRecord):
        Opener(keys.backward).open(*Sealer(keys.forward).seal(RecordKind.DATA, b"x"))


@pytest.mark.parametrize(
    "header", [b"\x00\x00\x00\x10", b"\x03\x00\x00\x10", b"\x01\x00\x00\x0f", b"\x01\xff\xff\xff"]
)
def test_bad_headers(header: bytes) -> None:
    with pytest.raises(BadRecord):
        Opener(KEY).parse(header)
