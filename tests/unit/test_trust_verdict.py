"""Scores, comparisons and verdicts: all of it pure."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import UsageError
from edgellm.trust.compare import Claim, Scoring, acceptable, deviations, same
from edgellm.trust.score import HALF_LIFE_S, Caught, Outcome, reputation, standing, state
from edgellm.trust.share import DEFAULT, check_share
from edgellm.trust.verdict import Judgement, Statement, culprit, judge

TRUE = Scoring((-0.1, -2.0, -0.5), (-0.1, -1.9, -0.5))
FALSE = Scoring((-4.0, -6.0, -3.0), (-0.1, -0.2, -0.1))
ELSE = Scoring((-9.0, -9.0, -9.0), (-0.1, -0.2, -0.1))


def said(said: Claim | Scoring, *hosts: str) -> Statement:
    return Statement(frozenset(hosts), said)


def hosts(*names: str) -> frozenset[str]:
    return frozenset(names)


def test_a_score_is_the_mean_of_the_beta_distribution_with_forgetting() -> None:
    assert reputation([], 0).score == 0.5
    assert reputation([Outcome(0, good=8)], 0).score == pytest.approx(0.9)
    assert reputation([Outcome(0, good=1), Outcome(0, bad=2)], 0).score == pytest.approx(2 / 5)
    found = reputation([Outcome(0, bad=4)], HALF_LIFE_S)
    assert found.bad == pytest.approx(2)
    assert reputation([Outcome(10, bad=4)], 0).bad == 4, "a clock set back makes nothing count more"


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 50), st.floats(0, 50))), st.floats(0, 1e7))
def test_a_score_is_between_0_and_1_and_good_only_helps(
    outcomes: list[tuple[float, float, float]], now: float
) -> None:
    seen = [Outcome(*outcome) for outcome in outcomes]
    score = reputation(seen, now).score
    assert 0 < score < 1
    assert reputation([*seen, Outcome(now, good=1)], now).score >= score
    assert reputation([*seen, Outcome(now, bad=1)], now).score <= score


def test_states() -> None:
    good, bad = Outcome(0, good=1), Outcome(0, bad=1)
    assert state(reputation([], 0), None) == "new"
    assert state(reputation([good], 0), None) == "trusted"
    assert state(reputation([bad], 0), None) == "trusted", "once is nobody's reputation"
    assert state(reputation([bad, bad], 0), None) == "avoid"
    assert state(reputation([bad, bad], HALF_LIFE_S), None) == "trusted"
    assert state(reputation([bad, bad], 10 * HALF_LIFE_S), None) == "new"
    assert state(reputation([bad, bad, *[good] * 5], 0), None) == "trusted"
    assert state(reputation([good] * 99, 0), Caught(0, "lied")) == "caught"
    assert standing([bad, bad], None, 0).doubt
    assert standing([], Caught(0, "lied"), 0).excluded == "lied"


def test_deviations_and_near_ties() -> None:
    assert deviations(Claim(None), TRUE) == pytest.approx((0, 0.1, 0))
    assert deviations(Claim((-0.1, -2.3, -0.5)), TRUE) == pytest.approx((0, 0.3, 0))
    assert same(Claim(None), TRUE)
    assert not same(Claim(None), FALSE)
    assert not same(TRUE, FALSE)
    assert same(FALSE, FALSE)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_agree_with_nobody(odd: float) -> None:
    assert not acceptable((0.0, odd))
    assert not same(Scoring((odd,), (odd,)), Scoring((odd,), (odd,)))


def test_nothing_compared_is_no_agreement() -> None:
    assert not acceptable(())


CLAIM = Claim(None)


def test_two_that_agree_are_right() -> None:
    found = judge([said(CLAIM, "a", "b"), said(TRUE, "c")])
    assert found == Judgement(right=(hosts("a", "b"), hosts("c")))


def test_two_that_differ_decide_nothing() -> None:
    assert judge([said(CLAIM, "a"), said(FALSE, "c")]).unresolved == (hosts("a"), hosts("c"))


def test_a_third_decides_for_either_side() -> None:
    found = judge([said(CLAIM, "a"), said(FALSE, "b"), said(FALSE, "c")])
    assert (found.wrong, found.right) == ((hosts("a"),), (hosts("b"), hosts("c")))
    found = judge([said(CLAIM, "a"), said(FALSE, "b"), said(TRUE, "c")])
    assert (found.wrong, found.right) == ((hosts("b"),), (hosts("a"), hosts("c")))


def test_three_opinions_decide_nothing() -> None:
    found = judge([said(CLAIM, "a"), said(FALSE, "b"), said(ELSE, "c")])
    assert not found.right
    assert not found.wrong


def test_a_host_does_not_vote_twice() -> None:
    # c says it alone and together with a; without b that would be a majority of one.
    found = judge([said(CLAIM, "a"), said(FALSE, "c"), said(FALSE, "c", "d")])
    assert found.unresolved


def test_suspects_are_told_apart_one_by_one() -> None:
    found = judge(
        [said(CLAIM, "a", "liar"), said(FALSE, "c"), said(FALSE, "d"), said(FALSE, "a"), said(ELSE, "liar")]
    )
    assert found.wrong == (hosts("a", "liar"), hosts("liar"))
    assert hosts("a") in found.right
    assert culprit("liar", found.wrong, found.right)
    assert culprit("a", found.wrong, found.right) is None


def test_without_a_look_at_each_nobody_of_several_is_caught() -> None:
    wrong = [hosts("a", "liar")]
    assert culprit("a", wrong, []) is None
    assert culprit("liar", wrong, []) is None
    assert culprit("liar", [*wrong, *wrong], []) is None, "the same two again tell nothing new"


def test_the_only_common_member_of_several_wrong_sets_is_caught() -> None:
    wrong = [hosts("a", "liar"), hosts("b", "liar")]
    assert culprit("liar", wrong, [])
    assert culprit("a", wrong, []) is None
    assert culprit("liar", wrong, [hosts("liar"), hosts("liar", "c")]) is None, "as often right: no proof"


@pytest.mark.parametrize("seed", range(40))
def test_an_honest_host_is_never_caught_beside_one_liar_that_picks_its_moments(seed: int) -> None:
    """However it chooses, as a member, as a checker, alone: a liar alone cannot have anybody else caught."""
    luck = random.Random(seed)
    names = ["a", "b", "c", "d", "liar"]
    wrong: list[frozenset[str]] = []
    right: list[frozenset[str]] = []
    truth, lie = TRUE, FALSE
    for _ in range(30):
        luck.shuffle(names)
        sets = [hosts(*names[:2]), hosts(names[2]), hosts(names[3]), hosts(names[0]), hosts(names[1])]
        lies = [("liar" in one) and luck.random() < 0.6 for one in sets]
        statements = [Statement(one, lie if bad else truth) for one, bad in zip(sets, lies, strict=True)]
        found = judge(statements)
        wrong += found.wrong
        right += found.right
        for name, _ in itertools.product("abcd", [0]):
            assert culprit(name, wrong, right) is None
    assert culprit("liar", wrong, right) is not None


def test_shares() -> None:
    assert check_share(None, (), {}) == DEFAULT
    assert check_share(None, ("alice",), {}) == 0
    assert check_share(0.5, ("alice",), {}) == 0.5
    assert check_share(None, (), {"EDGELLM_SPOT_CHECK": "0"}) == 0
    assert check_share(0.1, (), {"EDGELLM_SPOT_CHECK": "1"}) == 0.1
    for nonsense in ("often", "2", "-1", "nan"):
        with pytest.raises(UsageError, match="EDGELLM_SPOT_CHECK"):
            check_share(None, (), {"EDGELLM_SPOT_CHECK": nonsense})
