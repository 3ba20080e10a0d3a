"""How often something may happen for each of many: a token bucket for each key, and no more keys than a bound."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MAX_KEYS = 4096


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` at once, and `per_s` more each second."""

    burst: float
    per_s: float


class Pace:
    """One bucket of `rate` for each key. Keys that were not seen for longest are forgotten: their buckets are the fullest."""

    def __init__(self, rate: Rate, *, max_keys: int = MAX_KEYS) -> None:
        self._rate = rate
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admits(self, key: str, now: float) -> bool:
        """Whether one more for `key` is within its rate; counts it if so. `now` in seconds of a steady clock."""
        left, since = self._buckets.pop(key, (self._rate.burst, now))
        left = min(self._rate.burst, left + max(0.0, now - since) * self._rate.per_s)
        admitted = left >= 1
        self._buckets[key] = (left - admitted, now)
        while len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return admitted
