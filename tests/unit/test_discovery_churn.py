"""Discovery in a swarm that half of all hosts have just left, on a network in memory, in virtual time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from edgellm.discovery.collect import Found, SequenceBook, find_hosts
from edgellm.discovery.patience import ENOUGH, LEAST_OF_MANY_S, LEAST_S, patience_s
from edgellm.discovery.publish import Publisher
from edgellm.errors import DiscoveryError
from edgellm.requester.discover import discover
from edgellm.testing.memory_network import MemoryHub, MemoryNetwork, open_hub
from edgellm.types.advert import HostAdvert
from tests.unit.samples import advert

PROVIDER_TTL_S = 1200.0


def now() -> float:
    return 1000.0 + trio.current_time()


async def join_hosts(hub: MemoryHub, number: int) -> list[MemoryNetwork]:
    hosts = [hub.join() for _ in range(number)]
    for host in hosts:

        def current(host: MemoryNetwork = host) -> HostAdvert:
            return advert(peer=host.peer, issued_at=now(), expires_at=now() + 120)

        await Publisher(host, current).announce()
    return hosts


async def look(requester: MemoryNetwork, *, patient: bool = False) -> tuple[Found, float]:
    begun = trio.current_time()
    found = await find_hosts(requester, "tiny", book=SequenceBook(), now=now, patient=patient)
    return found, trio.current_time() - begun


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_half_of_100_leave_at_once(fault: str, autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        hub.latency_s = 0.04
        hosts, requester = await join_hosts(hub, 100), hub.join()
        for host in hosts[::2]:
            getattr(hub, fault)(host.peer)
        left = {host.peer for host in hosts[1::2]}
        for patient in (False, True):
            found, took_s = await look(requester, patient=patient)
            assert {sighting.advert.peer for sighting in found.sightings} == left
            assert found.listed == 100
            assert took_s < 10
            if not patient:
                assert took_s < 2.5, "a frozen peer costs 5 s"
        await trio.sleep(PROVIDER_TTL_S + 1)
        found, _ = await look(requester)
        # Those that are there announced themselves again; ghosts are listed no more.
        if fault == "kill":
            assert (found.listed, found.refused, found.unanswered) == (50, {}, 0)


async def test_one_deaf_host_costs_a_second_and_no_more(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        hosts, requester = await join_hosts(hub, 4), hub.join()
        hub.freeze(hosts[0].peer)
        found, took_s = await look(requester)
        assert len(found.sightings) == 3
        assert (found.unanswered, found.refused) == (1, {})
        assert took_s == pytest.approx(LEAST_S, abs=0.1)


async def test_the_only_host_is_waited_for_however_slow(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        hosts, requester = await join_hosts(hub, 1), hub.join()
        hub.latency_s = 0.8
        offers = await discover(requester, "tiny", book=SequenceBook(), now=now)
        assert [candidate.peer for candidate in offers[0].candidates] == [hosts[0].peer]


async def test_a_slow_host_is_waited_for_where_the_quick_ones_do_not_offer(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        hosts, requester = await join_hosts(hub, 2), hub.join()
        quick, slow = hosts

        draining = replace(advert(peer=quick.peer, issued_at=now(), expires_at=now() + 120), draining=True)
        await Publisher(quick, lambda: draining).announce()
        hub.freeze(slow.peer)

        async def thaw() -> None:
            await trio.sleep(2.5)
            hub.thaw(slow.peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(thaw)
            offers = await discover(requester, "tiny", book=SequenceBook(), now=now)
        assert [candidate.peer for candidate in offers[0].candidates] == [slow.peer]


async def test_all_hosts_are_gone(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        hosts, requester = await join_hosts(hub, 10), hub.join()
        for host in hosts:
            hub.kill(host.peer)
        with pytest.raises(DiscoveryError, match="10 listed: 10 unreachable"):
            await discover(requester, "tiny", book=SequenceBook(), now=now)


def test_patience() -> None:
    assert patience_s(()) == math.inf
    assert patience_s((0.05,)) == LEAST_S
    assert patience_s((0.05, 0.9)) == pytest.approx(2.7)
    assert patience_s((0.05,) * ENOUGH) == LEAST_OF_MANY_S
    assert patience_s((0.5,) * ENOUGH + (3.0,)) == pytest.approx(1.5)
