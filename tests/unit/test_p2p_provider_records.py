"""Provider records of many identities: who fills a key holds a share of it, never all."""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import SimpleNamespace

from edgellm.p2p.dht import MAX_PROVIDERS, _interleaved
from edgellm.p2p.network import PeerAddress
from edgellm.p2p.provider_records import KEYS, PER_KEY, PER_KEY_AND_NETWORK, PER_PROVIDER, BoundedRecords


@dataclass
class Provider:
    peer_id: str


class Store:
    """As py-libp2p's provider store keeps records."""

    def __init__(self) -> None:
        self.providers: dict[bytes, dict[str, object]] = {}

    def add_provider(self, key: bytes, provider: Provider) -> None:
        self.providers.setdefault(key, {})[provider.peer_id] = SimpleNamespace()


def bounded(networks: dict[str, str] | None = None) -> tuple[Store, BoundedRecords]:
    store = Store()
    places = networks or {}
    records = BoundedRecords(store, "self", lambda peer: places.get(peer, ""))
    records._chance = random.Random(1)
    return store, records


def test_a_crowd_of_one_network_has_few_places() -> None:
    networks = {f"sybil {number}": "198.51.100.0/24" for number in range(1000)} | {"honest": "203.0.113.0/24"}
    store, _ = bounded(networks)
    for number in range(1000):
        store.add_provider(b"key", Provider(f"sybil {number}"))
    store.add_provider(b"key", Provider("honest"))
    assert len(store.providers[b"key"]) == PER_KEY_AND_NETWORK + 1
    assert "honest" in store.providers[b"key"]


def test_whoever_announces_again_comes_back_into_a_full_key() -> None:
    store, _ = bounded()
    for number in range(5000):
        store.add_provider(b"key", Provider(f"sybil {number}"))
    store.add_provider(b"key", Provider("honest"))
    assert len(store.providers[b"key"]) == PER_KEY
    assert "honest" in store.providers[b"key"]
    store.add_provider(b"key", Provider("honest"))
    assert len(store.providers[b"key"]) == PER_KEY


def test_one_identity_has_so_many_keys_and_all_of_them_so_many() -> None:
    store, records = bounded()
    for number in range(PER_PROVIDER + 50):
        store.add_provider(b"%d" % number, Provider("greedy"))
    assert len(store.providers) == PER_PROVIDER
    for number in range(500):
        store.add_provider(b"own %d" % number, Provider("self"))
    assert len(store.providers) == PER_PROVIDER + 500
    records._providers.update({b"filler %d" % number: {} for number in range(KEYS)})
    store.add_provider(b"one more", Provider("late"))
    assert b"one more" not in store.providers


def test_an_answer_of_thousands_crowds_out_no_other() -> None:
    lies = {f"liar {number}": PeerAddress(f"liar {number}") for number in range(5000)}
    truth = {"honest": PeerAddress("honest")}
    found = _interleaved([{}, lies, lies, truth])
    assert len(found) == MAX_PROVIDERS
    assert PeerAddress("honest") in found[:3]
    assert _interleaved([]) == ()
