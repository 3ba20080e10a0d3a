"""What a session costs its hosts, in host-seconds."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.gateway.state import Closing
from edgellm.sessions.cost import Cost
from edgellm.sessions.serving import Serving


def test_two_hosts_for_an_hour_are_two_host_hours() -> None:
    cost = Cost(limit_s=7200.0).lent(2, since=1000.0, now=1000.0)
    assert cost.spent(1000.0) == 0.0
    assert cost.spent(2800.0) == 3600.0
    assert not cost.is_used_up(4599.0)
    assert cost.is_used_up(4600.0)
    assert not Cost().lent(2, since=0.0, now=0.0).is_used_up(1e9), "no limit"


def test_what_was_lent_before_it_was_told_counts_as_well() -> None:
    cost = Cost().lent(3, since=90.0, now=100.0)
    assert cost.spent(100.0) == 30.0
    assert cost.spent(101.0) == 33.0


def test_a_swap_counts_both_clusters_while_both_are_there() -> None:
    cost = Cost().lent(2, since=0.0, now=0.0).lent(1, since=10.0, now=14.0)
    assert cost.spent(14.0) == 2 * 14 + 4
    cost = cost.returned(2, now=20.0)
    assert cost.spent(20.0) == 2 * 20 + 10
    assert cost.spent(25.0) == 2 * 20 + 10 + 5
    assert cost.returned(1, now=30.0).spent(1e6) == 2 * 20 + 20


def test_a_clock_that_is_set_back_takes_nothing_away() -> None:
    cost = Cost().lent(1, since=100.0, now=110.0)
    assert cost.spent(50.0) == 10.0
    assert cost.lent(1, since=100.0, now=50.0).spent(60.0) == 10.0 + 2 * 10


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 100), st.integers(1, 100)), max_size=8))
def test_it_is_the_sum_over_all_leases(leases: list[tuple[int, int, int]]) -> None:
    events = [(begin, 1, hosts) for hosts, begin, _ in leases]
    events += [(begin + length, -1, hosts) for hosts, begin, length in leases]
    cost = Cost()
    for at, sign, hosts in sorted(events):
        cost = cost.lent(hosts, float(at), float(at)) if sign > 0 else cost.returned(hosts, float(at))
    assert cost.hosts == 0
    assert cost.spent(1000.0) == pytest.approx(sum(hosts * length for hosts, _, length in leases))


def test_a_session_that_closes_takes_nothing_new_and_keeps_its_first_reason() -> None:
    serving = Serving("tiny", idle_s=0.0, max_cost_s=100.0)
    with serving.lending(2, since=time.time() - 40):
        assert not serving.cost.is_used_up(time.time())
        assert serving.cost.is_used_up(time.time() + 10)
        serving.leave("its hosts have lent 100s together")
        serving.note("alice loading weights")
        serving.leave()
        assert serving.state() == Closing("its hosts have lent 100s together")
        with serving.used() as slot:
            assert slot is None
    assert serving.cost.hosts == 0
    assert serving.cost.spent(time.time() + 1000) == pytest.approx(80, abs=2)
