"""Addresses that strangers told."""

from __future__ import annotations

from types import SimpleNamespace

from libp2p.peer.id import ID
from multiaddr import Multiaddr

from edgellm.p2p.addresses import written
from edgellm.p2p.dht import _addresses
from edgellm.p2p.dialer import Dialer
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import PeerAddress

GOOD = "/ip4/192.0.2.7/tcp/4001"
NONE = Multiaddr(b"\x00")


def a_peer() -> ID:
    return ID.from_base58(Identity.generate().peer)


def test_what_is_no_address_is_left_out() -> None:
    cut_short = Multiaddr(b"\x04\x7f\x00\x00\x01\x06")
    assert written([NONE, Multiaddr(GOOD), cut_short]) == [GOOD]


def test_a_malformed_address_takes_no_provider_out_of_a_lookup() -> None:
    peer = a_peer()
    addresses = [NONE, Multiaddr(f"{GOOD}/p2p/{peer}"), Multiaddr(GOOD)]
    found = _addresses([SimpleNamespace(peer_id=peer, addrs=addresses)])
    assert found == {str(peer): PeerAddress(str(peer), (GOOD,))}


def test_a_malformed_address_that_is_remembered_hinders_no_dial() -> None:
    peer = a_peer()
    host = SimpleNamespace(
        get_network=SimpleNamespace,
        get_transport_addrs=list,
        get_peerstore=lambda: SimpleNamespace(addrs=lambda _: [NONE, Multiaddr(f"{GOOD}/p2p/{peer}")]),
    )
    assert Dialer(host)._candidates(peer, [Multiaddr(GOOD)]) == [Multiaddr(GOOD)]
