"""How long strangers may keep devices from others without ever sending a plan. Pure, but for its counts."""

from __future__ import annotations

from collections import OrderedDict

from edgellm.leasing.lease import Refusal

FREE_S = 90.0
"""Reservations without a plan that an origin has at once: of requesters whose other hosts refuse, and that plan again."""
REGAINED = 0.1
"""Of every second. Who never sends a plan has a host's devices for that share of the time at most."""
MAX_ORIGINS = 4096


class Patience:
    """Counts the time that each origin has kept devices for nothing."""

    def __init__(self) -> None:
        self._wasted: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def refusal(self, origin: str, now: float) -> Refusal | None:
        """Why `origin` gets no devices now, or None."""
        wasted_s = self._now(origin, now)
        if wasted_s < FREE_S:
            return None
        wait_s = (wasted_s - FREE_S) / REGAINED + 1
        return Refusal(
            "policy",
            f"you kept its devices again and again and sent no plan; it lends again in {wait_s:.0f} s",
        )

    def wasted(self, origin: str, seconds: float, now: float) -> None:
        """Notes a reservation of `seconds` for which no plan came."""
        self._wasted[origin] = (self._now(origin, now) + seconds, now)
        self._wasted.move_to_end(origin)
        while len(self._wasted) > MAX_ORIGINS:
            self._wasted.popitem(last=False)

    def _now(self, origin: str, now: float) -> float:
        wasted_s, since = self._wasted.get(origin, (0.0, now))
        return max(0.0, wasted_s - (now - since) * REGAINED)
