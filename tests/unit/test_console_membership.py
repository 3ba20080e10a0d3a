"""Which swarm a console is in, over a network in memory: one that is known, one that comes back, one of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from edgellm.console import membership
from edgellm.console.attached import attached_sources
from edgellm.console.membership import Membership, Place
from edgellm.console.sources import NotKnown, NotOffered, Unavailable
from edgellm.console.views import NewHost, NewSession
from edgellm.console.watcher import SwarmWatcher
from edgellm.discovery.bootstrap import remember
from edgellm.errors import DiscoveryError, UsageError
from edgellm.p2p.network import Network
from edgellm.p2p.node import NodeConfig
from edgellm.paths import Paths
from edgellm.sessions.registry import Registry
from edgellm.testing.memory_network import MemoryHub, open_hub
from tests.unit.test_console_swarm import join

KNOWN = "/ip4/10.0.0.1/tcp/4001/p2p/12D3KooWalice"


@dataclass
class World:
    """Whether the known swarm can be joined, and what was opened."""

    hub: MemoryHub
    paths: Paths
    is_there: bool = True
    joined: list[tuple[str, ...]] = field(default_factory=list)
    founded: list[NodeConfig] = field(default_factory=list)

    @asynccontextmanager
    async def join(
        self, known: tuple[str, ...], paths: Paths, *, mdns: bool, swarm: str = ""
    ) -> AsyncIterator[Network]:
        self.joined.append(known)
        await trio.sleep(1)
        if not self.is_there:
            raise DiscoveryError("no bootstrap peer answers", remedy="start one")
        async with trio.open_nursery():
            network = self.hub.join()
            meeting_point = self.hub.join()
            await network.connect(meeting_point.addresses[0])
            yield network

    @asynccontextmanager
    async def found(self, config: NodeConfig) -> AsyncIterator[Network]:
        self.founded.append(config)
        async with trio.open_nursery():
            yield self.hub.join(config.identity)

    @asynccontextmanager
    async def member(self, *said: str, mdns: bool = False) -> AsyncIterator[tuple[Membership, SwarmWatcher]]:
        watcher = SwarmWatcher()
        it = Membership(said, self.paths, watcher, mdns=mdns)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.keep)
            yield it, watcher
            nursery.cancel_scope.cancel()


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.delenv("EDGELLM_BOOTSTRAP", raising=False)
    async with open_hub() as hub:
        it = World(hub, Paths(tmp_path, tmp_path, tmp_path))
        monkeypatch.setattr(membership, "joined_swarm", it.join)
        monkeypatch.setattr(membership, "open_node", it.found)
        yield it


async def test_the_known_swarm_is_joined(world: World, autojump_clock: MockClock) -> None:
    await join(world.hub, "alice")
    async with world.member(KNOWN) as (it, watcher):
        assert await it.place() == Place((KNOWN,), False)
        swarm = await watcher.current()
        assert [peer.name for peer in swarm.peers] == ["alice"]
        assert swarm.join == [KNOWN]
    assert world.founded == []


async def test_without_any_it_is_its_own(world: World, autojump_clock: MockClock) -> None:
    async with world.member() as (it, watcher):
        place = await it.place()
        assert (await watcher.current()).join == list(place.bootstrap) == list(it.bootstrap())
        (config,) = world.founded
        # Nobody from outside is to get in.
        assert config.listen == ("/ip4/127.0.0.1/tcp/0",)
        assert (world.paths.state / "bootstrap").read_text().split() == list(place.bootstrap)
    assert (world.paths.state / "bootstrap").read_text() == ""
    assert world.joined == []


async def test_one_that_cannot_be_joined_is_tried_again(world: World, autojump_clock: MockClock) -> None:
    world.is_there = False
    async with world.member(KNOWN) as (it, watcher):
        swarm = await watcher.current()
        assert swarm.problem is not None
        assert swarm.problem.message == "no bootstrap peer answers"
        with pytest.raises(Unavailable, match="there is no swarm to join") as caught:
            await it.place()
        assert caught.value.remedy == "start one"
        await join(world.hub, "alice")
        world.is_there = True
        await trio.sleep(10)
        swarm = await watcher.current()
        assert (swarm.problem, [peer.name for peer in swarm.peers]) == (None, ["alice"])
    assert world.founded == []


async def test_a_defect_is_told_and_ends_nothing(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.member(KNOWN) as (it, watcher):
        await it.place()

        async def fail(network: object, key: str) -> None:
            raise ValueError("no such thing")

        monkeypatch.setattr("edgellm.testing.memory_network.MemoryNetwork.find_providers", fail)
        problem = (await watcher.current()).problem
        assert problem is not None
        assert "no such thing" in problem.message
        monkeypatch.undo()
        monkeypatch.setattr(membership, "joined_swarm", world.join)
        await trio.sleep(10)
        assert (await watcher.current()).problem is None


async def test_who_needs_a_swarm_is_not_held_to_one_that_is_gone(
    world: World, autojump_clock: MockClock
) -> None:
    world.is_there = False
    remember([KNOWN], world.paths.state)
    async with world.member() as (it, watcher):
        assert (await watcher.current()).problem is not None
        assert world.founded == []
        place = await it.place()
        assert len(world.founded) == 1
        assert KNOWN not in place.bootstrap
        swarm = await watcher.current()
        assert (swarm.problem, swarm.join) == (None, list(place.bootstrap))
    # It was there before, and may be again.
    assert (world.paths.state / "bootstrap").read_text().split() == [KNOWN]


async def test_one_that_was_asked_for_is_not_replaced(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    world.is_there = False
    monkeypatch.setenv("EDGELLM_BOOTSTRAP", KNOWN)
    async with world.member() as (it, _):
        with pytest.raises(Unavailable):
            await it.place()
    assert world.founded == []


async def test_hosts_find_each_other_by_multicast(world: World, autojump_clock: MockClock) -> None:
    world.is_there = False
    async with world.member(mdns=True) as (it, _):
        assert await it.place() == Place((), True)
    assert world.founded == []


def test_an_address_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Membership(("nonsense",), Paths(tmp_path, tmp_path, tmp_path), SwarmWatcher(), mdns=False)


async def test_the_sources_of_a_sessions_daemon(world: World, autojump_clock: MockClock) -> None:
    await join(world.hub, "alice")
    place = Place((KNOWN,), False)
    network = world.hub.join()
    closed: list[bool] = []
    Registry.of(world.paths).reserve("amber")
    Registry.of(world.paths).reserve("birch")
    async with attached_sources(
        network, world.paths, "amber", place, lambda: closed.append(True), isolation="bwrap"
    ) as sources:
        assert sources.session == "amber"
        assert [peer.name for peer in (await sources.swarm.current()).peers] == ["alice"]
        assert not sources.hosts.offered
        with pytest.raises(NotOffered, match="from the console of a session"):
            await sources.hosts.start(NewHost(model="tiny", memory_bytes=1))
        assert sources.hosts.all() == ()
        # Others' sessions may be locked, and this one's endpoint open.
        assert [session.name for session in await sources.sessions.all()] == ["amber"]
        for call in (sources.sessions.one, sources.sessions.close):
            with pytest.raises(NotKnown, match="session 'amber' alone"):
                await call("birch")
        with pytest.raises(NotKnown):
            await sources.sessions.swap("birch", "tiny")
        with pytest.raises(NotKnown):
            sources.engines.ask("birch", {})
        with pytest.raises(NotKnown):
            await sources.engines.timings("birch", "abc")
        with pytest.raises(NotOffered):
            await sources.sessions.open(NewSession(model="tiny"))
        # The daemon cannot wait for its own end.
        await sources.sessions.close("amber")
        assert closed == [True]
