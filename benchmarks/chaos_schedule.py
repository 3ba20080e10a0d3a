"""Which faults happen when: made from a seed, so that a run can be repeated, and one fault of it alone. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "host killed",
    "rank killed",
    "host frozen",
    "rank frozen",
    "cable pulled",
    "packets dropped",
    "disk full",
    "out of memory",
    "slow to a crawl",
    "host's Ctrl-C",
    "host's owner",
]
KINDS: tuple[Kind, ...] = (
    "host killed",
    "rank killed",
    "host frozen",
    "rank frozen",
    "cable pulled",
    "packets dropped",
    "disk full",
    "out of memory",
    "slow to a crawl",
    "host's Ctrl-C",
    "host's owner",
)
Cluster = Literal["two hosts", "two hosts and a spare", "three hosts", "a question's own"]
SHARES: dict[Cluster, int] = {
    "two hosts": 8,
    "two hosts and a spare": 7,
    "three hosts": 3,
    "a question's own": 2,
}
"""How many faults of twenty each kind of cluster gets. In this order."""
SIDES = ("everybody", "the requester", "its members")
"""To whom packets are lost."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One that is to happen."""

    number: int
    kind: Kind
    cluster: Cluster
    member: float
    """Which member of the cluster it hits: this share of the way from its first stage to its last."""
    at: float
    """When: this share of the way through the answer."""
    prompts: tuple[int, ...]
    """Of the answers that are streamed meanwhile."""
    with_ask: bool
    """Whether an `edgellm ask --session` waits for an answer, too."""
    side: str


def schedule(
    seed: int, count: int, prompts: int, *, only: Sequence[Kind] = (), clusters: Sequence[Cluster] = ()
) -> tuple[Fault, ...]:
    """`count` faults, those of a cluster together. A longer schedule of the same seed begins with those of a shorter one.

    `prompts`: how many different ones there are.
    """
    kinds = tuple(kind for kind in KINDS if not only or kind in only)
    shares = {name: share for name, share in SHARES.items() if not clusters or name in clusters}
    faults = [_fault(seed, number, prompts, kinds, shares) for number in range(count)]
    order = tuple(SHARES)
    return tuple(sorted(faults, key=lambda fault: (order.index(fault.cluster), fault.number)))


def _fault(seed: int, number: int, prompts: int, kinds: Sequence[Kind], shares: dict[Cluster, int]) -> Fault:
    # Every kind comes once before any comes again.
    turn = random.Random(f"{seed} kinds {number // len(kinds)}")
    kind = turn.sample(kinds, len(kinds))[number % len(kinds)]
    chosen = random.Random(f"{seed} {number}")
    (cluster,) = chosen.choices(tuple(shares), tuple(shares.values()))
    at_once = 1 if cluster == "a question's own" else chosen.choice((1, 1, 2, 4))
    return Fault(
        number=number,
        kind=kind,
        cluster=cluster,
        member=chosen.random(),
        at=chosen.uniform(0.05, 0.6),
        prompts=tuple(chosen.randrange(prompts) for _ in range(at_once)),
        with_ask=chosen.random() < 0.25,
        side=chosen.choice(SIDES),
    )
