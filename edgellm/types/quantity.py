"""Amounts of bytes and of time as people read and write them."""

from __future__ import annotations

import re

from edgellm.errors import UsageError

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_FACTORS = {"": 1, "b": 1} | {
    unit: base**power
    for power, letter in enumerate("kmgtp", start=1)
    for unit, base in ((letter, 1024), (f"{letter}ib", 1024), (f"{letter}b", 1000))
}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
_MAX_BYTES = 1 << 63
_UNITS_S = {"s": 1, "m": 60, "h": 3600}
_MOST_S = 10 * 365 * 86400


def format_bytes(count: int) -> str:
    """`count` in the largest binary unit that leaves at least 1, with three digits or more: "1.50 GiB", "512 MiB"."""
    size, unit = float(count), 0
    while abs(size) >= 1023.5 and unit < len(_BINARY) - 1:
        size, unit = size / 1024, unit + 1
    if unit == 0 or abs(size) >= 99.95:
        return f"{size:.0f} {_BINARY[unit]}"
    return f"{size:.1f} {_BINARY[unit]}" if abs(size) >= 9.995 else f"{size:.2f} {_BINARY[unit]}"


def format_duration(seconds: float) -> str:
    """In whole seconds, minutes and hours, the two largest of them: "45s", "1m 30s", "2h", "2h 5m"; nothing is below "0s"."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    parts = [(hours, "h"), (minutes, "m")] if hours else [(minutes, "m"), (rest, "s")]
    return " ".join(f"{count}{unit}" for count, unit in parts if count) or "0s"


def parse_bytes(text: str) -> int:
    """Bytes in "2GiB", "1.5 gb" (powers of 1000), "512M" (powers of 1024, as in `docker run -m`) or "1048576".

    Raises UsageError when `text` is no positive quantity.
    """
    remedy = "write it as 2GiB, 512MiB or 1500MB"
    match = _QUANTITY.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is no amount of memory", remedy=remedy)
    count = float(match[1]) * factor
    if not 1 <= count < _MAX_BYTES:
        raise UsageError(f"{text!r} is not a possible amount of memory", remedy=remedy)
    return int(count)


def parse_duration(text: str) -> float:
    """Seconds in "90s", "15m", "2h" or plain seconds; 0 means no limit. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smh]?)", text)
    if found is None:
        raise UsageError(f"{text!r} is no duration", remedy="write for example 90s, 15m or 2h")
    seconds = float(found[1]) * _UNITS_S[found[2] or "s"]
    if seconds > _MOST_S:
        raise UsageError(f"{text!r} is longer than 10 years", remedy="0 means no limit")
    return seconds
