"""Whether two engines said the same of a piece of text. Pure.

Equal weights do not give equal numbers: sums in bf16 depend on their order, which differs between tensor-parallel degrees,
batches, and a prompt computed at once or token by token. So what is compared are logprobs, within a tolerance. See
docs/decisions/0020-trust.md for what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

TOLERANCE = 0.35
"""Nats at one position."""
MEAN_TOLERANCE = 0.1
"""Nats, over all positions."""
FAR_SHARE = 1 / 8
"""Of the positions, those that may be over `TOLERANCE`."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the answer itself says of the tokens at the positions that are compared."""

    logprobs: tuple[float, ...] | None
    """None: each is the likeliest one."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """What a recomputation says of the same tokens."""

    logprobs: tuple[float, ...]
    likeliest: tuple[float, ...]
    """Logprobs of the tokens that it would have chosen."""


def deviations(one: Claim | Scoring, other: Scoring) -> tuple[float, ...]:
    """At each position, in nats, how far they are apart. A token that claims to be the likeliest is as far off as the likeliest
    one is above it: two that are nearly as likely change places by rounding.
    """
    if one.logprobs is None:
        return tuple(abs(most - own) for own, most in zip(other.logprobs, other.likeliest, strict=True))
    return tuple(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))


def same(one: Claim | Scoring, other: Scoring) -> bool:
    """Whether these can be the same model's numbers."""
    return acceptable(deviations(one, other))


def acceptable(apart: Sequence[float]) -> bool:
    if not apart or not all(math.isfinite(nats) for nats in apart):
        return False
    over = sum(nats > TOLERANCE for nats in apart)
    return over <= len(apart) * FAR_SHARE and sum(apart) / len(apart) <= MEAN_TOLERANCE
