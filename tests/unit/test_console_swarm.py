"""What the console sees of a swarm: hosts over a network in memory that come, change, go and die."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from edgellm.console import views, watcher
from edgellm.console.membership import Place
from edgellm.console.sources import Busy, Event
from edgellm.console.swarm import MAX_MODELS, differs, models_of, peer_of, refused_of
from edgellm.console.watcher import SwarmWatcher
from edgellm.discovery.bootstrap import forget, remember
from edgellm.discovery.collect import Sighting
from edgellm.discovery.publish import Publisher
from edgellm.errors import DiscoveryError
from edgellm.p2p.network import Network, PeerAddress, Stream
from edgellm.testing.memory_network import MemoryHub, MemoryNetwork, open_hub
from edgellm.types.advert import HostAdvert
from tests.unit.samples import advert

SOON_S = 10.0
"""What the console promises."""


@dataclass
class Host:
    """Advertises, with what is set here."""

    network: MemoryNetwork
    name: str
    free_leases: int = 1
    sequence: int = 0

    def current(self) -> HostAdvert:
        self.sequence += 1
        now = time.time()
        said = advert(
            peer=self.network.peer,
            sequence=self.sequence,
            issued_at=now,
            expires_at=now + 120,
            name=self.name,
        )
        return replace(said, free_leases=self.free_leases)


async def join(hub: MemoryHub, name: str) -> Host:
    host = Host(hub.join(), name)
    await Publisher(host.network, host.current).announce()
    return host


@dataclass
class Seen:
    """A watcher that looks, and what it tells."""

    hub: MemoryHub
    watcher: SwarmWatcher
    network: Network
    events: trio.MemoryReceiveChannel[Event]

    async def until(self, what: str, name: str | None = None) -> float:
        """Seconds until that is told."""
        begun = trio.current_time()
        with trio.fail_after(60):
            async for event in self.events:
                if event.name == what and (name is None or _name(event) == name):
                    return trio.current_time() - begun
        raise AssertionError("the events ended")


def _name(event: Event) -> str:
    assert isinstance(event.data, views.PeerEvent)
    return event.data.peer.name


@asynccontextmanager
async def watched() -> AsyncIterator[Seen]:
    async with open_hub() as hub, trio.open_nursery() as nursery:
        it, network = SwarmWatcher(), hub.join()
        nursery.start_soon(it.look, network, ("/memory/1/p2p/x",))
        async with it.watch() as events:
            await it.current()
            yield Seen(hub, it, network, events)
        nursery.cancel_scope.cancel()


async def test_hosts_join_change_and_leave(autojump_clock: trio.testing.MockClock) -> None:
    async with watched() as seen:
        alice = await join(seen.hub, "alice")
        assert await seen.until("joined", "alice") < SOON_S
        alice.free_leases = 0
        assert await seen.until("changed", "alice") < SOON_S
        seen.hub.kill(alice.network.peer)
        assert await seen.until("left", "alice") < SOON_S
        swarm = await seen.watcher.current()
        assert (swarm.peers, swarm.models) == ([], [])
        assert [(one.what, one.name) for one in swarm.recent] == [("joined", "alice"), ("left", "alice")]
        # It is listed for 20 minutes still.
        await trio.sleep(10)
        assert (await seen.watcher.current()).refused == [views.Refused(reason="unreachable", count=1)]


async def test_a_silent_host_leaves_soon_and_holds_up_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with watched() as seen:
        alice, bob = await join(seen.hub, "alice"), await join(seen.hub, "bob")
        while len((await seen.watcher.current()).peers) < 2:
            await trio.sleep(0.5)
        seen.hub.freeze(alice.network.peer)
        assert await seen.until("left", "alice") < SOON_S
        # Looking for newcomers goes on although one that is listed never answers.
        await trio.sleep(5)
        await join(seen.hub, "carol")
        assert await seen.until("joined", "carol") < SOON_S
        seen.hub.kill(bob.network.peer)
        assert await seen.until("left", "bob") < SOON_S
        seen.hub.thaw(alice.network.peer)
        assert await seen.until("joined", "alice") < SOON_S


async def test_one_answer_that_is_lost_is_no_end(autojump_clock: trio.testing.MockClock) -> None:
    async with watched() as seen:
        alice = await join(seen.hub, "alice")
        await seen.until("joined", "alice")
        for _ in range(5):
            seen.hub.freeze(alice.network.peer)
            await trio.sleep(2.5)
            seen.hub.thaw(alice.network.peer)
            await trio.sleep(5)
        names = [one.what for one in (await seen.watcher.current()).recent]
        assert names == ["joined"]


async def test_nobody_is_asked_while_nobody_watches(autojump_clock: trio.testing.MockClock) -> None:
    async with open_hub() as hub, trio.open_nursery() as nursery:
        it = SwarmWatcher()
        nursery.start_soon(it.look, hub.join(), ())
        alice = await join(hub, "alice")
        await trio.sleep(300)
        assert alice.sequence <= 1
        begun = trio.current_time()
        assert [peer.name for peer in (await it.current()).peers] == ["alice"]
        assert trio.current_time() - begun < 3
        await trio.sleep(300)
        hub.kill(alice.network.peer)
        # What was seen five minutes ago is not shown.
        assert (await it.current()).peers == []
        nursery.cancel_scope.cancel()


async def test_trouble_is_shown_and_passes(autojump_clock: trio.testing.MockClock) -> None:
    async with open_hub() as hub, trio.open_nursery() as nursery:
        it = SwarmWatcher()
        it.trouble(DiscoveryError("no bootstrap peer answers", remedy="start one"))
        async with it.watch() as events:
            told = (await events.receive()).data
            assert isinstance(told, views.Swarm)
            assert told.problem == views.Problem(
                message="no bootstrap peer answers", remedy="start one", type="discovery"
            )
            assert (await it.current()).problem is not None
            await join(hub, "alice")
            nursery.start_soon(it.look, hub.join(), ())
            with trio.fail_after(10):
                while not (isinstance(told := (await events.receive()).data, views.Swarm) and told.peers):
                    pass
            assert told.problem is None
        nursery.cancel_scope.cancel()


async def test_a_connection_to_nobody_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    async with open_hub() as hub:
        it = SwarmWatcher()
        async with it.watch():
            with pytest.raises(ExceptionGroup) as caught, trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    network = hub.join()

                    async def look() -> None:
                        await it.look(network, (), among_others=True)

                    nursery.start_soon(look)
    assert caught.group_contains(DiscoveryError, match="lost")


async def test_a_look_that_fails_is_told_and_tried_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_hub() as hub, trio.open_nursery() as nursery:
        it, network = SwarmWatcher(), hub.join()
        answers, failures = network.find_providers, [RuntimeError("defect"), DiscoveryError("nobody")]

        async def find_providers(key: str) -> tuple[PeerAddress, ...]:
            if failures:
                raise failures.pop(0)
            return await answers(key)

        monkeypatch.setattr(network, "find_providers", find_providers)
        await join(hub, "alice")
        nursery.start_soon(it.keep_looking, network, ())
        told = (await it.current()).problem
        assert told is not None
        assert "defect" in told.message
        await trio.sleep(10)
        swarm = await it.current()
        assert ([peer.name for peer in swarm.peers], swarm.problem) == (["alice"], None)
        nursery.cancel_scope.cancel()


async def test_a_host_that_cannot_even_be_asked_is_malformed(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched() as seen:
        answers, mallory = seen.network.open_stream, await join(seen.hub, "mallory")

        async def open_stream(peer: str, *arguments: Any, **options: Any) -> Stream:
            if peer == mallory.network.peer:
                raise ValueError("no multiaddr")
            return await answers(peer, *arguments, **options)

        monkeypatch.setattr(seen.network, "open_stream", open_stream)
        await join(seen.hub, "alice")
        await seen.until("joined", "alice")
        assert (await seen.watcher.current()).refused == [views.Refused(reason="malformed", count=1)]


async def test_who_does_not_keep_up_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "MAX_WAITING", 2)
    monkeypatch.setattr(watcher, "MAX_WATCHERS", 1)
    it = SwarmWatcher()
    async with it.watch() as events:
        with pytest.raises(Busy):
            async with it.watch():
                pass
        for number in range(4):
            it.trouble(DiscoveryError(f"trouble {number}"))
        assert len([event async for event in events]) == 2
    async with it.watch():
        pass


def test_what_is_told_and_what_not() -> None:
    shown = peer_of(Sighting(advert(), 0.010))
    later = peer_of(Sighting(advert(sequence=2, expires_at=2000.0), 0.011))
    assert not differs(shown, later)
    assert differs(shown, peer_of(Sighting(advert(), 0.020)))
    assert differs(shown, peer_of(Sighting(replace(advert(), draining=True), 0.010)))
    assert differs(shown, peer_of(Sighting(advert(), 0.010), "a1b2c3"))


def test_models_are_put_together_by_name_and_version() -> None:
    alice = peer_of(Sighting(advert(peer="a", name="alice"), 0.01))
    bob = peer_of(Sighting(advert(peer="b", name="bob"), 0.01))
    (entry,), more = models_of([alice, bob])
    assert (entry.name, entry.hosts, entry.free_memory_bytes) == ("tiny", ["alice", "bob"], 8 << 30)
    assert more == 0
    assert models_of([]) == ([], 0)
    assert refused_of(["b", "a", "b"]) == [
        views.Refused(reason="a", count=1),
        views.Refused(reason="b", count=2),
    ]


def test_a_host_that_names_very_many_models_does_not_hide_those_that_others_have() -> None:
    alice = peer_of(Sighting(advert(peer="a", name="alice"), 0.01))
    bob = peer_of(Sighting(advert(peer="b", name="bob"), 0.01))
    offers = [alice.models[0].model_copy(update={"name": f"a-{number:04}"}) for number in range(MAX_MODELS)]
    mallory = alice.model_copy(update={"peer": "m", "models": offers})
    models, more = models_of([mallory, alice, bob])
    assert (len(models), more) == (MAX_MODELS, 1)
    assert models[-1].hosts == ["alice", "bob"]
    assert models[0].name == "a-0000"


def test_hosts_listen_where_their_swarm_is() -> None:
    local, far = "/ip4/127.0.0.1/tcp/1/p2p/x", "/ip4/10.0.0.1/tcp/1/p2p/x"
    assert Place((local,), False).listen == "/ip4/127.0.0.1/tcp/0"
    assert Place((local, far), False).listen == "/ip4/0.0.0.0/tcp/0"
    assert Place((local,), True).listen == "/ip4/0.0.0.0/tcp/0"
    assert Place((), True).listen == "/ip4/0.0.0.0/tcp/0"


def test_an_address_that_goes_is_forgotten(tmp_path: Path) -> None:
    state = tmp_path
    remember(["/ip4/10.0.0.1/tcp/1/p2p/a", "/ip4/10.0.0.2/tcp/1/p2p/b"], state)
    forget(["/ip4/10.0.0.2/tcp/1/p2p/b"], state)
    assert (state / "bootstrap").read_text() == "/ip4/10.0.0.1/tcp/1/p2p/a\n"
    forget(["/ip4/10.0.0.3/tcp/1/p2p/c"], state)
    assert (state / "bootstrap").read_text() == "/ip4/10.0.0.1/tcp/1/p2p/a\n"
