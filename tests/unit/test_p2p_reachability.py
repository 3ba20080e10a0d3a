"""What follows from what others say of this node's addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.p2p.reachability import DialBack, Mapping, Seen, candidates, confirmed, verdict

ADDRESS = "/ip4/45.9.0.7/tcp/4001"
OTHER = "/ip4/45.9.0.8/tcp/4001"
MAPPING = Mapping("45.9.0.7", 4001, 4001, "UPnP")
RELAY = "12D3KooWRELAYabcdefgh"


def back(host: str, reached: str = ADDRESS, *, named: bool = False, peer: str = "") -> DialBack:
    return DialBack(peer or f"peer at {host}", host, named, reached)


def test_two_strangers_or_one_whom_the_owner_named_are_believed() -> None:
    assert confirmed([back("45.1.0.1")]) == ()
    assert confirmed([back("45.1.0.1"), back("45.1.0.2")]) == (ADDRESS,)
    assert confirmed([back("45.1.0.1", named=True)]) == (ADDRESS,)


def test_many_identities_at_one_address_are_one_stranger() -> None:
    crowd = [back("45.1.0.1", peer=f"sybil {number}") for number in range(50)]
    assert confirmed(crowd) == ()


def test_strangers_that_name_different_addresses_confirm_none() -> None:
    assert confirmed([back("45.1.0.1", ADDRESS), back("45.1.0.2", OTHER)]) == ()


def test_who_is_reached_directly_needs_no_relay() -> None:
    found = verdict([back("45.1.0.1"), back("45.1.0.2")], (), relays=())
    assert (found.way, found.addresses, found.needs_relay) == ("direct", (ADDRESS,), False)
    assert "2 peers got through to 45.9.0.7 port 4001" in found.why


def test_a_port_that_the_router_opened_is_said_to_be_its_work() -> None:
    found = verdict([back("45.1.0.1", named=True)], [MAPPING], relays=())
    assert found.way == "mapped"
    assert "UPnP" in found.why


def test_a_port_of_a_router_behind_another_router_does_not_count() -> None:
    found = verdict([back("45.1.0.1", "", named=True)], [MAPPING], relays=[RELAY])
    assert found.way == "relayed"
    assert "to which nobody got through" in found.why


def test_who_is_on_the_same_network_knows_nothing_of_the_way_in_from_outside() -> None:
    inside = back("192.168.1.9", "/ip4/192.168.1.7/tcp/4001", named=True)
    assert verdict([inside], (), relays=()).way == "direct"
    assert "none from outside" in verdict([inside], (), relays=()).why
    outside = back("45.1.0.1", "", named=True)
    assert verdict([inside, outside], (), relays=()).way == "unreachable"
    assert verdict([inside, outside], (), relays=[RELAY]).way == "relayed"


def test_one_stranger_that_says_yes_among_noes_is_not_believed() -> None:
    found = verdict([back("45.1.0.1"), back("45.1.0.2", ""), back("45.1.0.3", "")], (), relays=())
    assert found.way == "unreachable"
    assert found.addresses == ()
    assert "only one stranger" in found.why
    assert found.remedy


@pytest.mark.parametrize(
    ("mappings", "relays", "announced", "way"),
    [
        ((), (), (), "unknown"),
        ([MAPPING], (), (), "mapped"),
        ([Mapping("192.168.0.2", 4001, 4001, "UPnP")], (), (), "unknown"),
        ((), [RELAY], (), "relayed"),
        ((), (), [ADDRESS], "unknown"),
    ],
)
def test_where_nobody_could_be_asked(mappings, relays, announced, way) -> None:
    assert verdict((), mappings, relays=relays, announced=announced).way == way


def test_candidates_are_what_was_mapped_what_was_seen_and_the_machines_own() -> None:
    seen = [Seen("p", "45.1.0.1", "45.9.0.7", 31000, ()), Seen("q", "45.1.0.2", "45.9.0.7", 0, ())]
    mapping = Mapping("45.9.0.7", 4002, 4001, "UPnP")
    assert candidates(["/ip4/192.168.1.7/tcp/4001"], seen, [mapping, MAPPING], 4001) == (
        "/ip4/45.9.0.7/tcp/4002",
        "/ip4/45.9.0.7/tcp/4001",
        "/ip4/45.9.0.7/tcp/31000",
        "/ip4/192.168.1.7/tcp/4001",
    )


@given(
    st.lists(
        st.builds(
            DialBack,
            st.text(max_size=3),
            st.sampled_from(["45.1.0.1", "45.1.0.2", "192.168.1.2"]),
            st.just(False),
            st.sampled_from(["", ADDRESS, OTHER]),
        ),
        max_size=12,
    )
)
def test_no_single_strangers_word_makes_an_address_known(backs: list[DialBack]) -> None:
    for address in confirmed(backs):
        assert len({each.host for each in backs if each.reached == address}) >= 2


def test_while_somebody_contradicts_a_relay_is_kept_besides() -> None:
    liar, honest = back("45.1.0.1", named=True), back("45.1.0.2", "", named=True)
    found = verdict([liar, honest], (), relays=[RELAY])
    assert (found.way, found.needs_relay) == ("direct", True)
    assert "(1 did not)" in found.why
    assert not verdict([liar], (), relays=[RELAY]).needs_relay


def test_a_verdict_says_what_to_do_where_nobody_gets_through() -> None:
    assert "--announce" in str(verdict([back("45.1.0.1", "", named=True)], (), relays=()))
    assert "--announce" not in str(verdict([back("45.1.0.1", named=True)], (), relays=()))
