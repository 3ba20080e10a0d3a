"""How often strangers may try to join. Pure: the time is passed in."""

from __future__ import annotations

from dataclasses import dataclass, field

EACH_PER_MINUTE = 10.0
ALL_PER_MINUTE = 60.0
MAX_SOURCES = 1024
_ALL = "all"
"""No source is called that; those whose address is not known (behind a relay) are "" together."""


@dataclass
class Attempts:
    """Token buckets (each holds a minute's worth): one for each source address, one for all together."""

    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def allows(self, source: str, now: float) -> bool:
        """Whether one more attempt from `source` is let through, which is counted then."""
        if source not in self._buckets and len(self._buckets) >= MAX_SOURCES:
            self._forget_full(now)
        return self._take(source, EACH_PER_MINUTE, now) and self._take(_ALL, ALL_PER_MINUTE, now)

    def _take(self, source: str, per_minute: float, now: float) -> bool:
        left, since = self._buckets.get(source, (per_minute, now))
        left = min(per_minute, left + (now - since) * per_minute / 60)
        self._buckets[source] = (max(left - 1, 0.0) if left >= 1 else left, now)
        return left >= 1

    def _forget_full(self, now: float) -> None:
        """Forgets those who have waited for a minute; all, where nobody has: the bucket for all holds still."""
        recent = {source: entry for source, entry in self._buckets.items() if entry[1] > now - 60}
        everyone = self._buckets.get(_ALL)
        self._buckets = recent if len(recent) < MAX_SOURCES else {}
        if everyone is not None:
            self._buckets[_ALL] = everyone
