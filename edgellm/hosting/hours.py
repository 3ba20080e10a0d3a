"""Until when a host lends. Pure: the time is passed in."""

from __future__ import annotations

from datetime import datetime, timedelta

from edgellm.errors import UsageError
from edgellm.types.quantity import parse_duration

NOTICE_S = 120.0
"""Running leases are told so long before the end that is known beforehand: a large model needs it to come up elsewhere."""
_REMEDY = "write a time of day (18:00), how long (2h), or a date and a time (2026-05-01T18:00)"


def parse_until(text: str, now: datetime) -> float:
    """The Unix time that `text` means: a time of day (the next such), a duration from `now`, or a date and time in ISO 8601.

    Without an offset it is in the zone of `now`. Raises UsageError for what is none of them, or is over already.
    """
    try:
        if "T" in text or " " in text.strip() or text.count("-") == 2:
            moment = datetime.fromisoformat(text.strip())
            moment = moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)
            if moment <= now:
                raise UsageError(f"{text} is over already", remedy=_REMEDY)
            return moment.timestamp()
        if ":" in text:
            of_day = datetime.strptime(text.strip(), "%H:%M").time()
            today = datetime.combine(now.date(), of_day, now.tzinfo)
            return (today if today > now else today + timedelta(days=1)).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is no time at which to stop", remedy=_REMEDY) from None
    seconds = parse_duration(text)
    if not seconds:
        raise UsageError(f"{text!r} is no time at which to stop", remedy=_REMEDY)
    return now.timestamp() + seconds


def notice_s(lends_for_s: float, grace_s: float) -> float:
    """How long before the end of a host that lends for `lends_for_s` its leases are told, and no more are granted."""
    return min(max(NOTICE_S, grace_s), max(0.0, lends_for_s) / 2)


def format_moment(unix_s: float, now: datetime) -> str:
    """In the zone of `now`: "18:00", with its date where that is another day."""
    moment = datetime.fromtimestamp(unix_s, now.tzinfo)
    return moment.strftime("%H:%M" if moment.date() == now.date() else "%Y-%m-%d %H:%M")
