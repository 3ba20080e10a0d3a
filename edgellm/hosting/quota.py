"""How much a host lends in an hour, a day, a week or a month, and when it opens again. Pure.

    2h/day              two hours of leases a day, all leases of all requesters together
    1e6tok/day          a million tokens, prompts and answers alike, that this host's layers computed
    10GB/day            that many bytes between its cells and the other members of their clusters, both ways together
    30min/day/member    for each member of the swarm; those who are no members share one

Time and bytes are measured outside of the cell. Tokens are counted by the engine in it, beside the requester's code: one who
changes the engine can have fewer counted, so whoever wants a bound that holds against anybody gives one of the others as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from edgellm.errors import UsageError
from edgellm.types.quantity import format_bytes, format_duration, parse_bytes

Kind = Literal["time", "tokens", "bytes"]
Period = Literal["hour", "day", "week", "month"]

WHOLE = "*"
"""The account of everybody together."""

_REMEDY = "write it as 2h/day,1e6tok/day,10GB/day: an amount of time, tokens or bytes for each hour, day, week or month"
_TIME_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([a-z]+)", re.IGNORECASE | re.ASCII)
_TOKENS = {"tok": 1, "ktok": 10**3, "mtok": 10**6, "gtok": 10**9, "token": 1, "tokens": 1}
_PERIODS = ("hour", "day", "week", "month")
_MOST = 1e18


@dataclass(frozen=True, slots=True)
class Allowance:
    """One part of a quota. `amount` is in seconds, tokens or bytes."""

    kind: Kind
    amount: float
    period: Period
    each_member: bool = False

    def __str__(self) -> str:
        return f"{format_amount(self.kind, self.amount)}/{self.period}{'/member' if self.each_member else ''}"


@dataclass(frozen=True, slots=True)
class Work:
    """What a lease has taken."""

    time_s: float = 0.0
    tokens: int = 0
    transferred_bytes: int = 0

    def of(self, kind: Kind) -> float:
        return {"time": self.time_s, "tokens": self.tokens, "bytes": self.transferred_bytes}[kind]

    def less(self, other: Work) -> Work:
        """What was taken since `other`; never below zero."""
        return Work(
            max(0.0, self.time_s - other.time_s),
            max(0, self.tokens - other.tokens),
            max(0, self.transferred_bytes - other.transferred_bytes),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """What one account has taken of one kind since its period began."""

    began: float
    amount: float


Key = tuple[str, Kind, Period]


@dataclass(frozen=True, slots=True)
class Spent:
    """An allowance that is used up."""

    allowance: Allowance
    opens_at: float
    """Unix time."""

    def __str__(self) -> str:
        opens = datetime.fromtimestamp(self.opens_at).astimezone()
        return f"its quota of {self.allowance} is used up; it opens again at {opens:%Y-%m-%d %H:%M %Z}"


@dataclass(frozen=True, slots=True)
class Ledger:
    """Who has taken how much. Every charge gives a new one."""

    entries: Mapping[Key, Entry]

    def charge(self, who: str, work: Work, quota: Iterable[Allowance], now: float) -> Ledger:
        """Adds `work` of the member `who` to all accounts that it counts for; forgets those whose period is over."""
        entries = {key: entry for key, entry in self.entries.items() if entry.began >= began(key[2], now)}
        for allowance in quota:
            key = _key(allowance, who)
            # Two allowances of one kind and period are one account.
            if key in entries and entries[key] != self.entries.get(key):
                continue
            taken = entries.get(key, Entry(began(allowance.period, now), 0.0))
            entries[key] = replace(taken, amount=taken.amount + work.of(allowance.kind))
        return Ledger(entries)

    def taken(self, allowance: Allowance, who: str, now: float) -> float:
        entry = self.entries.get(_key(allowance, who))
        return entry.amount if entry is not None and entry.began >= began(allowance.period, now) else 0.0

    def spent(self, who: str, quota: Iterable[Allowance], now: float) -> Spent | None:
        """The allowance that keeps `who` out for longest now, or None."""
        used_up = [
            Spent(allowance, ends(allowance.period, now))
            for allowance in quota
            if self.taken(allowance, who, now) >= allowance.amount
        ]
        return max(used_up, key=lambda spent: spent.opens_at, default=None)


def parse_lending_quota(text: str) -> tuple[Allowance, ...]:
    """The allowances of a quota such as "2h/day,1e6tok/day". Raises UsageError that names the part that is wrong."""
    parts = [part.strip() for part in text.split(",")]
    if not any(parts):
        raise UsageError("the quota is empty", remedy=_REMEDY)
    return tuple(_parse(part) for part in parts)


def _parse(part: str) -> Allowance:
    amount, *rest = [piece.strip() for piece in part.split("/")]
    if len(rest) not in (1, 2) or (len(rest) == 2 and rest[1].lower() != "member"):
        raise UsageError(f"{part!r} is no quota", remedy=_REMEDY)
    period = rest[0].lower()
    if period not in _PERIODS:
        raise UsageError(f"{rest[0]!r} in {part!r} is no period", remedy="say hour, day, week or month")
    kind, count = _parse_amount(amount, part)
    if not 0 < count < _MOST:
        raise UsageError(f"{amount!r} in {part!r} is no possible amount", remedy=_REMEDY)
    if kind == "time" and count < 60:
        raise UsageError(
            f"{amount!r} in {part!r} is too short to answer anything", remedy="lend a minute or more"
        )
    return Allowance(kind, count, period, each_member=len(rest) == 2)  # type: ignore[arg-type]


def _parse_amount(amount: str, part: str) -> tuple[Kind, float]:
    match = _AMOUNT.fullmatch(amount)
    unit = match[2].lower() if match else ""
    if match and unit in _TOKENS:
        return "tokens", float(match[1]) * _TOKENS[unit]
    if match and unit in _TIME_UNITS:
        return "time", float(match[1]) * _TIME_UNITS[unit]
    try:
        if not unit:
            raise UsageError("no unit")
        return "bytes", float(parse_bytes(amount))
    except UsageError as error:
        raise UsageError(
            f"{amount!r} in {part!r} is no amount of time, tokens or bytes", remedy=_REMEDY
        ) from error


def format_amount(kind: Kind, amount: float) -> str:
    """As people write it: "2h", "1e+06tok" as "1,000,000 tok", "9.31 GiB"."""
    match kind:
        case "time":
            return format_duration(amount)
        case "tokens":
            return f"{round(amount):,} tok"
        case "bytes":
            return format_bytes(round(amount))


def began(period: Period, now: float) -> float:
    """When the period that holds `now` began, by this machine's calendar: the full hour, midnight, Monday, the first."""
    at = datetime.fromtimestamp(now)
    hour = at.replace(minute=0, second=0, microsecond=0)
    midnight = hour.replace(hour=0)
    match period:
        case "hour":
            return hour.timestamp()
        case "day":
            return midnight.timestamp()
        case "week":
            return (midnight - timedelta(days=at.weekday())).timestamp()
        case "month":
            return midnight.replace(day=1).timestamp()


def ends(period: Period, now: float) -> float:
    """When the next period begins, by the calendar: a day of 23 or 25 hours is a day, too."""
    since = datetime.fromtimestamp(began(period, now))
    match period:
        case "hour":
            return since.timestamp() + 3600
        case "day":
            return (since + timedelta(days=1)).timestamp()
        case "week":
            return (since + timedelta(days=7)).timestamp()
        case "month":
            return (since + timedelta(days=32)).replace(day=1).timestamp()


def _key(allowance: Allowance, who: str) -> Key:
    return (who if allowance.each_member else WHOLE, allowance.kind, allowance.period)
