"""From what was seen of a host to a standing. Pure.

The beta reputation of Jøsang and Ismail ("The Beta Reputation System", 15th Bled eCommerce Conference, 2002): of r good and s
bad outcomes, the expected share of good ones to come is (r + 1) / (r + s + 2), the mean of Beta(r + 1, s + 1). What is old
counts less (their forgetting factor): half as much after each `HALF_LIFE_S`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgellm.types.plan import Standing

HALF_LIFE_S = 3 * 86400.0
CHECK_WEIGHT = 2.0
"""A recomputed answer tells more than one that merely came."""
AVOID_BELOW = 0.5
AVOID_FROM = 1.5
"""Bad outcomes, by their weight, from which on a host is avoided: a single failure is nobody's reputation."""
KNOWN_FROM = 0.9
"""Outcomes from which on a host is not new."""

State: TypeAlias = Literal["trusted", "new", "avoid", "caught"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing that a host did."""

    at: float
    good: float = 0.0
    bad: float = 0.0


@dataclass(frozen=True, slots=True)
class Caught:
    """A host that computed wrongly, and how that is known."""

    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Reputation:
    """0 to 1, 0.5 for whom nothing is known of, and how much stands behind it."""

    score: float
    good: float
    bad: float


def reputation(outcomes: Iterable[Outcome], now: float) -> Reputation:
    good = bad = 0.0
    for outcome in outcomes:
        weight = 0.5 ** (max(0.0, now - outcome.at) / HALF_LIFE_S)
        good += weight * outcome.good
        bad += weight * outcome.bad
    return Reputation((good + 1) / (good + bad + 2), good, bad)


def state(found: Reputation, caught: Caught | None) -> State:
    if caught is not None:
        return "caught"
    if found.bad >= AVOID_FROM and found.score < AVOID_BELOW:
        return "avoid"
    return "new" if found.good + found.bad < KNOWN_FROM else "trusted"


def standing(outcomes: Sequence[Outcome], caught: Caught | None, now: float) -> Standing:
    """What the planner makes of it."""
    found = reputation(outcomes, now)
    match state(found, caught):
        case "caught":
            assert caught is not None
            return Standing(excluded=caught.reason)
        case "avoid":
            return Standing(doubt=f"it failed often lately (score {found.score:.2f})")
        case _:
            return Standing()
