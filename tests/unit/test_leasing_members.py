"""Leases in a private swarm: who gets one, and how it ends when a membership does."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from edgellm.errors import HostLost
from edgellm.leasing.hold import LeasesRefused
from edgellm.leasing.policy import MEMBERS, Policy
from edgellm.leasing.serve import LeaseServer
from edgellm.swarms.store import SwarmHome
from edgellm.testing.memory_network import MemoryHub, MemoryNetwork, open_hub
from edgellm.types.member import HOST, REQUESTER
from tests.unit.samples import book
from tests.unit.swarms_in_memory import PrivateSwarm
from tests.unit.test_leasing_stream import FakeRunner, Host, hold_leases, until, wish


@pytest.fixture(autouse=True)
def patient_clock(autojump_clock: MockClock) -> None:
    """Files are written in threads, for which the clock is to wait."""
    autojump_clock.autojump_threshold = 0.02


@pytest.fixture
def swarm(tmp_path: Path) -> PrivateSwarm:
    return PrivateSwarm(tmp_path)


def lend(network: MemoryNetwork, policy: Policy) -> Host:
    runner = FakeRunner()
    server = LeaseServer(network, book(), runner, now=lambda: 1000.0, policy=policy)
    server.attach()
    return Host(network, runner, server)


async def refused(requester: MemoryNetwork, host: Host) -> LeasesRefused:
    with pytest.raises(LeasesRefused) as caught:
        async with hold_leases(requester, [wish(host)]):
            pytest.fail("it was granted")
    assert host.free
    return caught.value


async def test_members_only_means_nobody_in_the_open_swarm(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        error = await refused(hub.join(), lend(hub.join(), MEMBERS))
        assert error.denials[0].code == "policy"
        assert "members of its swarm only" in str(error)
        assert "--allow" in error.remedy


async def test_who_may_ask_gets_a_lease_and_who_may_lend_none(
    swarm: PrivateSwarm, autojump_clock: MockClock
) -> None:
    async with open_hub() as hub, trio.open_nursery() as nursery:
        host = lend(swarm.node(hub, swarm.home("alice", [HOST]), nursery), MEMBERS)
        carol = swarm.node(hub, swarm.home("carol", [REQUESTER]), nursery, asks=True)
        async with hold_leases(carol, [wish(host)]):
            assert not host.free
        await until(lambda: host.free)
        bob = swarm.node(hub, swarm.home("bob", [HOST]), nursery)
        assert "lending only" in str(await refused(bob, host))
        nursery.cancel_scope.cancel()


async def test_chosen_members_are_known_under_any_key(swarm: PrivateSwarm, autojump_clock: MockClock) -> None:
    carols, daves = swarm.home("carol"), swarm.home("dave")
    policy = Policy(peers=frozenset({carols.member().peer}))

    def ask(hub: MemoryHub, home: SwarmHome) -> MemoryNetwork:
        return swarm.node(hub, home, nursery, asks=True)

    async with open_hub() as hub, trio.open_nursery() as nursery:
        host = lend(swarm.node(hub, swarm.home("alice"), nursery), policy)
        async with hold_leases(ask(hub, carols), [wish(host)]):
            assert not host.free
        await until(lambda: host.free)
        assert "chosen peers" in str(await refused(ask(hub, daves), host))
        nursery.cancel_scope.cancel()


async def test_a_revocation_ends_a_lease_within_seconds(
    swarm: PrivateSwarm, autojump_clock: MockClock
) -> None:
    carols = swarm.home("carol")
    async with open_hub() as hub, trio.open_nursery() as nursery:
        maker = swarm.node(hub, swarm.maker, nursery)
        host = lend(swarm.node(hub, swarm.home("alice"), nursery), MEMBERS)
        await maker.connect(host.network.addresses[0])
        # It does not attend, and so never hears of it.
        carol = swarm.visitor(hub, carols)
        with pytest.raises(HostLost):
            async with hold_leases(carol, [wish(host)]):
                assert not host.free
                swarm.maker.revoke(carols.member().peer)
                await until(lambda: host.free)
                await trio.sleep(10)
        assert "was revoked" in (await refused(carol, host)).denials[0].reason
        nursery.cancel_scope.cancel()
