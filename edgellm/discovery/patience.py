"""How long to wait for hosts that have not answered. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

ENOUGH = 16
"""Hosts, of which one rarely needs more: from then on the rest has to be about as quick."""
LEAST_S = 1.0
LEAST_OF_MANY_S = 0.3
FACTOR = 3.0


def patience_s(answered_s: Sequence[float]) -> float:
    """How long after the question the last answers may come, given how long those took that came; infinite before the first.

    A host at the other end of the world needs five round trips for its first answer, a dead one never gives one: so three times
    the slowest, and a second at least.
    """
    if not answered_s:
        return math.inf
    if len(answered_s) < ENOUGH:
        return max(LEAST_S, FACTOR * max(answered_s))
    return max(LEAST_OF_MANY_S, FACTOR * statistics.median(answered_s))
