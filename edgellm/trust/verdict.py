"""From statements about one answer, and from all answers before it, to who computed wrongly. Pure.

A statement is what a set of hosts, as one cluster, says of some tokens: the answer itself, or a recomputation. Nobody knows
what is true; what most sets of hosts without a common member say is taken for it. So a liar is never believed against two
honest sets, and a colluding majority always is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgellm.trust.compare import Claim, Scoring, same


@dataclass(frozen=True, slots=True)
class Statement:
    hosts: frozenset[str]
    said: Claim | Scoring


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of one answer: each set of hosts that made a statement about it is in one of these."""

    right: tuple[frozenset[str], ...] = ()
    wrong: tuple[frozenset[str], ...] = ()
    unresolved: tuple[frozenset[str], ...] = ()
    """They contradict each other, and nobody else was there to decide."""


def agree(one: Statement, other: Statement) -> bool:
    if isinstance(other.said, Scoring):
        return same(one.said, other.said)
    return isinstance(one.said, Scoring) and same(other.said, one.said)


def judge(statements: Sequence[Statement]) -> Judgement:
    """What most of the independent statements say is right; at least two of them must say it, and more than say anything else.

    Sets that share members with others (a suspect, computing again with a host that was borne out) are judged and do not vote.
    """
    voters = _independent(statements)
    votes = [[other for other in voters if other is one or agree(one, other)] for one in voters]
    most = max(votes, key=len, default=[])
    against = max((len(vote) for vote in votes if not any(one in most for one in vote)), default=0)
    if len(most) < 2 or len(most) <= against:
        return Judgement(unresolved=tuple(one.hosts for one in statements))
    right = [one for one in statements if one in most or all(agree(one, other) for other in most)]
    return Judgement(
        right=tuple(one.hosts for one in right),
        wrong=tuple(one.hosts for one in statements if one not in right),
    )


def _independent(statements: Sequence[Statement]) -> list[Statement]:
    """The first ones of which no two have a host in common."""
    chosen: list[Statement] = []
    for one in statements:
        if not any(one.hosts & other.hosts for other in chosen):
            chosen.append(one)
    return chosen


def culprit(host: str, wrong: Iterable[frozenset[str]], right: Iterable[frozenset[str]]) -> str | None:
    """How it is known that `host` computed wrongly, of all statements so far; None where it is not.

    It is where it was wrong alone, or where it is the only one that several wrong sets have in common and it was wrong in more
    sets than it was right in: other liars beside it in each of them would have to be assumed otherwise.
    """
    mine = [hosts for hosts in wrong if host in hosts]
    alone = sum(hosts == {host} for hosts in mine)
    if alone:
        return "its own computation differs from what others found independently"
    if len(set(mine)) < 2 or frozenset.intersection(*mine) != {host}:
        return None
    if len(mine) <= sum(host in hosts for hosts in right):
        return None
    return f"{len(mine)} wrong answers of different hosts have it alone in common"
