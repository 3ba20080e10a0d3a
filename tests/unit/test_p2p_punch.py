"""Which addresses are told to whom a hole is to be punched, and which of theirs are dialled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from edgellm.p2p.addresses import ip_endpoint, is_public
from edgellm.p2p.punch import MAX_ADDRESSES, own_outside, punchable
from edgellm.p2p.reachability import Seen


def raw(*addresses: str) -> list[bytes]:
    return [Multiaddr(address).to_bytes() for address in addresses]


def test_a_peer_has_nobody_dial_inside_of_a_private_network() -> None:
    told = raw(
        "/ip4/192.168.1.1/tcp/80",
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/169.254.169.254/tcp/80",
        "/ip4/10.0.0.1/tcp/22",
        "/ip6/::1/tcp/4001",
        "/dns4/internal/tcp/80",
        "/ip4/45.9.0.7/udp/4001",
        "/ip4/45.9.0.7/tcp/4001",
    )
    assert punchable(told) == ["/ip4/45.9.0.7/tcp/4001"]


def test_a_peer_has_nobody_dial_many() -> None:
    assert len(punchable(raw(*(f"/ip4/45.9.0.{n}/tcp/4001" for n in range(1, 200))))) == MAX_ADDRESSES


@given(st.lists(st.binary(max_size=40), max_size=40))
def test_whatever_a_peer_tells_only_public_tcp_addresses_are_left(told: list[bytes]) -> None:
    for address in punchable(told):
        endpoint = ip_endpoint(address)
        assert endpoint is not None
        assert is_public(endpoint[0])


def test_what_is_seen_of_the_port_itself_goes_before_what_is_guessed() -> None:
    seen = [
        Seen("p", "45.1.0.1", "45.9.0.7", 31000, ()),
        Seen("q", "45.1.0.2", "45.9.0.7", 0, ()),
        Seen("r", "192.168.1.1", "192.168.1.2", 4001, ()),
    ]
    assert own_outside(seen, 4001) == ["/ip4/45.9.0.7/tcp/31000", "/ip4/45.9.0.7/tcp/4001"]
