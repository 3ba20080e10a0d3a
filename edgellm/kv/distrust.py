"""Holders that are left alone for a while: one sent what did not open, another did not deliver."""

from __future__ import annotations

from collections import OrderedDict

MAX_AVOIDED = 4096


class Distrust:
    """Until when which holder is avoided, by scope: a holder of nonsense in one may be a good one in another."""

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[bytes, str], float] = OrderedDict()

    def avoid(self, scope: bytes, holder: str, until: float) -> None:
        """Avoids `holder` in `scope` until then, or longer where it was said before."""
        key = (scope, holder)
        self._until[key] = max(until, self._until.get(key, until))
        self._until.move_to_end(key)
        while len(self._until) > MAX_AVOIDED:
            self._until.popitem(last=False)

    def avoided(self, scope: bytes, holder: str, now: float) -> bool:
        return now < self._until.get((scope, holder), now)
