"""Lookups in a DHT of hundreds of peers of which many are gone, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from edgellm.p2p.lookup import LATE_AT_FIRST_S, LEAST_LATE_S, MAX_ASKED, Answer, K, Looked, late_s, lookup

TIMEOUT_S = 4.0
SPACE = 1 << 32


@dataclass
class Dht:
    """Peers are numbers, and so are keys. Each knows `K` of each distance, as Kademlia's buckets hold them."""

    peers: list[int]
    round_trip_s: dict[int, float]
    known: dict[int, list[int]]
    records: dict[int, set[str]] = field(default_factory=dict)
    refusing: set[int] = field(default_factory=set)
    deaf: set[int] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, number: int, chance: random.Random) -> Dht:
        peers = chance.sample(range(SPACE), number)
        known = {}
        for peer in peers:
            buckets: dict[int, list[int]] = {}
            for other in chance.sample(peers, number):
                bucket = buckets.setdefault((peer ^ other).bit_length(), [])
                if other != peer and len(bucket) < K:
                    bucket.append(other)
            known[peer] = [other for bucket in buckets.values() for other in bucket]
        return cls(peers, {peer: chance.uniform(0.01, 0.2) for peer in peers}, known)

    def closest(self, key: int, among: Sequence[int]) -> list[int]:
        return sorted(among, key=lambda peer: peer ^ key)[:K]

    def announce(self, key: int, who: str) -> None:
        for peer in self.closest(key, self.peers):
            self.records.setdefault(peer, set()).add(who)

    async def ask(self, peer: int, key: int) -> Answer[int, str] | None:
        self.asked.append(peer)
        if peer in self.refusing:
            await trio.sleep(0.005)
            return None
        if peer in self.deaf:
            await trio.sleep(TIMEOUT_S)
            return None
        await trio.sleep(self.round_trip_s[peer])
        return Answer(sorted(self.records.get(peer, ())), self.closest(key, self.known[peer]))

    async def find(self, key: int, start: Sequence[int]) -> tuple[set[str], Looked[int], float]:
        found: set[str] = set()
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            looked = await lookup(
                nursery, start, lambda peer: self.ask(peer, key), lambda peer: peer ^ key, found.update
            )
            took_s = trio.current_time() - begun
        return found, looked, took_s


@pytest.mark.parametrize("seed", range(5))
async def test_a_lookup_leads_to_the_closest_peers(seed: int, autojump_clock: MockClock) -> None:
    chance = random.Random(seed)
    dht, key = Dht.of(500, chance), chance.randrange(SPACE)
    dht.announce(key, "alice")
    found, looked, took_s = await dht.find(key, chance.sample(dht.peers, 3))
    assert found == {"alice"}
    assert len(set(looked.closest) & set(dht.closest(key, dht.peers))) >= K - 2
    assert took_s < 1.5
    assert len(dht.asked) == len(set(dht.asked)) < 120


@pytest.mark.parametrize("how", ["refusing", "deaf"])
@pytest.mark.parametrize("seed", range(5))
async def test_half_of_all_leave_at_once(how: str, seed: int, autojump_clock: MockClock) -> None:
    chance = random.Random(seed)
    dht, key = Dht.of(100, chance), chance.randrange(SPACE)
    for who in ("alice", "bob", "carol"):
        dht.announce(key, who)
    getattr(dht, how).update(chance.sample(dht.peers, 50))
    left = [peer for peer in dht.peers if peer not in dht.refusing | dht.deaf]
    start = chance.sample(dht.peers, 10)
    found, looked, took_s = await dht.find(key, [*start, left[0]])
    assert found == {"alice", "bob", "carol"}
    assert set(looked.closest) <= set(left)
    assert len(set(looked.closest) & set(dht.closest(key, left))) >= K - 4
    # As long as one that is deaf costs who waits for it, and half of them are deaf.
    assert took_s < TIMEOUT_S


async def test_where_nothing_was_found_the_late_ones_are_waited_for(autojump_clock: MockClock) -> None:
    dht = Dht([1, 2], {1: 0.01, 2: 3.0}, {1: [2], 2: [1]}, {2: {"alice"}})
    found, _, took_s = await dht.find(0, [1])
    assert found == {"alice"}
    assert took_s == pytest.approx(3.01, abs=0.05)


async def test_nobody_is_there(autojump_clock: MockClock) -> None:
    dht = Dht([], {}, {})
    assert await dht.find(0, []) == (set(), Looked((), 0, 0), 0)
    dht.refusing = {1, 2, 3}
    found, looked, took_s = await dht.find(0, [1, 2, 3])
    assert (found, looked.closest, looked.failed) == (set(), (), 3)
    assert took_s < 0.1


async def test_who_lies_about_the_world_leads_nowhere_for_ever(autojump_clock: MockClock) -> None:
    async def ask(peer: int) -> Answer[int, str]:
        await trio.sleep(0.01)
        # Always somebody closer.
        return Answer((), [peer - step for step in range(1, 100) if peer > step])

    async with trio.open_nursery() as nursery:
        looked = await lookup(nursery, [1 << 40], ask, lambda peer: peer, lambda found: None)
    assert looked.asked <= MAX_ASKED


def test_how_long_is_late() -> None:
    assert late_s(()) == LATE_AT_FIRST_S
    assert late_s((0.01, 0.02, 0.03)) == LEAST_LATE_S
    assert late_s((0.5, 0.5, 3.0)) == 2.0
