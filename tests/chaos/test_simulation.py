"""Swarms of 50 under heavy churn, in virtual time, with the product's own hosts and requesters. `make bench BENCH=simulate`
runs 500.
"""

from __future__ import annotations

import pytest

from benchmarks.churn import MODELS, Scenario, gone_within, lifetime_scale_s, make_scenario
from benchmarks.simulated_swarm import simulated


def scenario(seed: int, *, hours: float = 0.2) -> Scenario:
    """Nine of ten are gone within an hour, which a swarm of 50 feels as one of 500 feels three."""
    return make_scenario(
        seed,
        peers=50,
        hours=hours,
        leaving_each_hour=0.9,
        requests_each_hour=120,
        requesters=8,
        models=MODELS[:3],
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_all_answers_are_finished_though_hosts_leave(seed: int) -> None:
    results = simulated(scenario(seed))
    outcomes = results.outcomes
    assert len(outcomes) > 10
    assert [outcome.failure for outcome in outcomes if outcome.failure] == []
    assert sum(outcome.wrong_tokens for outcome in outcomes) == 0
    assert (results.leases_left_behind, results.cells_left_behind) == (0, 0)
    assert sum(results.left.values()) > 30
    # Else this shows nothing.
    assert results.left_while_leased > 0


def test_a_scenario_can_be_replayed() -> None:
    first, second, other = (simulated(scenario(seed, hours=0.1)) for seed in (4, 4, 5))
    assert first == second
    assert first.fingerprint != other.fingerprint


def test_lifetimes_are_as_asked_for() -> None:
    for share in (0.1, 0.3, 0.9):
        assert gone_within(3600, lifetime_scale_s(share)) == pytest.approx(share, abs=0.001)
    made = make_scenario(7, peers=2000, hours=4, leaving_each_hour=0.3, requests_each_hour=10, requesters=1)
    for hour in range(4):
        there = [life for life in made.hosts if life.comes_at <= hour * 3600 < life.leaves_at]
        gone = sum(life.leaves_at <= (hour + 1) * 3600 for life in there)
        assert len(there) == pytest.approx(2000, rel=0.06)
        assert gone / len(there) == pytest.approx(0.3, abs=0.04)
    # Heavy-tailed: of those who come many leave at once, and some stay for days.
    stays_s = sorted(life.leaves_at - life.comes_at for life in made.hosts if life.comes_at)
    assert stays_s[len(stays_s) // 5] < 300
    assert stays_s[-1] > 86_400 / 2


def test_scenarios_follow_from_their_seed() -> None:
    assert scenario(1) == scenario(1)
    assert scenario(1) != scenario(2)
