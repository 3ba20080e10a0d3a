"""What this user's experience of hosts does to plans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgellm.errors import PlanError
from edgellm.planning.plan import make_plan
from edgellm.types.plan import Candidate, Standing
from tests.unit.planning_samples import GIB, ask, host, layers_of, model


def excluded(candidate: Candidate) -> Candidate:
    return replace(candidate, standing=Standing(excluded="it lied"))


def doubted(candidate: Candidate) -> Candidate:
    return replace(candidate, standing=Standing(doubt="it failed often"))


def test_who_is_excluded_is_never_in_a_plan() -> None:
    fast, slow = excluded(host("fast", bandwidth=900e9)), host("slow")
    assert set(layers_of(make_plan(ask(), [fast, slow]))) == {"slow"}
    with pytest.raises(PlanError, match="2 hosts; 1 offer"):
        make_plan(ask(pp=2), [fast, slow])


def test_where_all_are_excluded_it_says_why_and_what_to_do() -> None:
    with pytest.raises(
        PlanError, match=r"left out for what it did before \(host-a \(a\): it lied\)"
    ) as error:
        make_plan(ask(), [excluded(host("a"))])
    assert "--forgive" in error.value.remedy
    with pytest.raises(PlanError, match="left out"):
        make_plan(ask(peers=("a",)), [excluded(host("a")), host("b")])


def test_who_is_in_doubt_is_the_last_choice() -> None:
    fast, slow = doubted(host("fast", bandwidth=900e9)), host("slow")
    assert set(layers_of(make_plan(ask(), [fast, slow]))) == {"slow"}
    assert set(layers_of(make_plan(ask(pp=2), [fast, slow]))) == {"fast", "slow"}
    assert set(layers_of(make_plan(ask(), [fast]))) == {"fast"}
    assert set(layers_of(make_plan(ask(peers=("fast",)), [fast, slow]))) == {"fast"}, "who names it, gets it"


def test_who_is_in_doubt_is_taken_where_the_others_are_too_small() -> None:
    big = model(layers=(500 * (1 << 20),) * 12)
    plan = make_plan(ask(big), [doubted(host("doubted", 16 * GIB)), host("small", 2 * GIB)])
    assert "doubted" in layers_of(plan)


def test_who_is_in_doubt_is_taken_where_the_others_are_too_slow() -> None:
    fast, slow = doubted(host("fast", bandwidth=900e9)), host("slow", bandwidth=1e9)
    assert "fast" in layers_of(make_plan(ask(min_tok_s=20), [fast, slow]))
