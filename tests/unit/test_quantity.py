"""Byte quantities as people write and read them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import UsageError
from edgellm.types.quantity import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536 << 20, "1.50 GiB"),
        (54 << 20, "54.0 MiB"),
        (512 << 20, "512 MiB"),
        ((1 << 30) - 1, "1.00 GiB"),
        (141 * (1 << 30), "141 GiB"),
        (1 << 60, "1024 PiB"),
    ],
)
def test_format(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GiB", 2 << 30),
        ("1.5 gb", 1_500_000_000),
        ("512M", 512 << 20),
        ("1048576", 1 << 20),
        (" 3 TiB ", 3 << 40),
        ("7B", 7),
    ],
)
def test_parse(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "0", "0.1B", "2 GiBs", "1e9", "nan", "inf", "９GiB", "9" * 400, "1_0"]
)
def test_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert caught.value.remedy


@given(count=st.integers(1, 1 << 62))
def test_what_is_written_reads_back_to_three_digits(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.006)


@given(text=st.text(max_size=20))
def test_any_text_is_a_quantity_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        assert parse_bytes(text) > 0
