"""Who lends what now, for programs: with an event loop of asyncio or trio, or without one."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.client.options import texts
from edgellm.client.waiting import in_thread
from edgellm.discovery.versions import Model, entries_of
from edgellm.errors import DiscoveryError, unwrapped
from edgellm.types.advert import Device

if TYPE_CHECKING:
    import trio

    from edgellm.discovery.collect import SequenceBook, Sighting

__all__ = ["AsyncSwarm", "Model", "Peer", "Swarm"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A host that answered just now, as it describes itself."""

    name: str
    peer: str
    """Its peer id."""
    addresses: tuple[str, ...]
    engine: str
    devices: tuple[Device, ...]
    """Each with the memory that is free on it."""
    free_devices: tuple[str, ...]
    """Ids of those that could be leased."""
    free_memory_bytes: int
    free_leases: int
    load: float
    """What `max_load` is compared with: 0 to 1."""
    draining: bool
    """It takes no new leases."""
    models: tuple[str, ...]
    round_trip_s: float


def peer_of(sighting: Sighting) -> Peer:
    advert = sighting.advert
    return Peer(
        name=advert.name,
        peer=advert.peer,
        addresses=advert.addresses,
        engine=str(advert.engine),
        devices=advert.devices,
        free_devices=advert.free_devices,
        free_memory_bytes=advert.free_memory_bytes,
        free_leases=advert.free_leases,
        load=advert.load,
        draining=advert.draining,
        models=tuple(offer.name for offer in advert.models),
        round_trip_s=sighting.round_trip_s,
    )


class Swarm:
    """Looks at a swarm; lends nothing and asks nothing of it.

        for peer in Swarm(["/ip4/192.168.1.7/tcp/4001/p2p/12D3KooW…"]).peers():
            print(peer.name, peer.free_memory_bytes)

    Without addresses those of EDGELLM_BOOTSTRAP, else those that worked the last time are taken. Each call joins for a second
    or two, and raises DiscoveryError when no peer answers. It may be called from any thread, and in a running event loop,
    which it blocks.
    """

    def __init__(
        self, bootstrap: Sequence[str] = (), *, mdns: bool = False, swarm: str | None = None
    ) -> None:
        self._visits = _Visits(bootstrap, mdns=mdns, swarm=swarm)

    def peers(self) -> tuple[Peer, ...]:
        """The hosts, by peer id."""
        return tuple(map(peer_of, self._sightings()))

    def models(self) -> tuple[Model, ...]:
        """What can be asked for, by name; the same name with another digest is another version."""
        return tuple(entries_of(self._sightings()))

    def _sightings(self) -> tuple[Sighting, ...]:
        visit = self._visits.new()
        with ThreadPoolExecutor(1) as thread:
            try:
                return thread.submit(visit.run).result()
            finally:
                visit.give_up()


class AsyncSwarm:
    """`Swarm` for asyncio and trio: `await AsyncSwarm([…]).peers()`."""

    def __init__(
        self, bootstrap: Sequence[str] = (), *, mdns: bool = False, swarm: str | None = None
    ) -> None:
        self._visits = _Visits(bootstrap, mdns=mdns, swarm=swarm)

    async def peers(self) -> tuple[Peer, ...]:
        """As `Swarm.peers`."""
        return tuple(map(peer_of, await self._sightings()))

    async def models(self) -> tuple[Model, ...]:
        """As `Swarm.models`."""
        return tuple(entries_of(await self._sightings()))

    async def _sightings(self) -> tuple[Sighting, ...]:
        visit = self._visits.new()
        return await in_thread(visit.run, visit.give_up)


class _Visits:
    """Visits to one swarm, which remember the newest advert of each peer."""

    def __init__(self, bootstrap: Sequence[str], *, mdns: bool, swarm: str | None) -> None:
        self._bootstrap = texts("bootstrap", bootstrap)
        self._swarm = swarm
        self._mdns = mdns
        self._book: SequenceBook | None = None

    def new(self) -> _Visit:
        from edgellm.discovery.collect import SequenceBook

        self._book = self._book or SequenceBook()
        return _Visit(self._bootstrap, self._book, mdns=self._mdns, swarm=self._swarm)


class _Visit:
    """One visit, with a trio loop of its own in whichever thread runs it."""

    def __init__(
        self, bootstrap: tuple[str, ...], book: SequenceBook, *, mdns: bool, swarm: str | None
    ) -> None:
        self._bootstrap = bootstrap
        self._swarm = swarm
        self._book = book
        self._mdns = mdns
        self._lock = threading.Lock()
        self._running: tuple[trio.lowlevel.TrioToken, trio.CancelScope] | None = None
        self._given_up = False

    def run(self) -> tuple[Sighting, ...]:
        """What the hosts say of themselves. Raises DiscoveryError, UsageError."""
        import trio

        return trio.run(self._look)

    def give_up(self) -> None:
        """Ends `run`, from another thread; nothing when it has ended."""
        with self._lock:
            self._given_up = True
            if self._running is not None:
                token, scope = self._running
                token.run_sync_soon(scope.cancel)

    async def _look(self) -> tuple[Sighting, ...]:
        import trio

        from edgellm.discovery.collect import find_hosts
        from edgellm.paths import default_paths
        from edgellm.requester.open import joined_swarm
        from edgellm.swarms.chosen import chosen_name, require_peers, swarm_called

        paths = default_paths()
        name = chosen_name(self._swarm, paths)
        peers = require_peers(self._bootstrap, swarm_called(name, paths), paths, mdns=self._mdns)
        with unwrapped(), trio.CancelScope() as scope:
            with self._lock:
                self._running = trio.lowlevel.current_trio_token(), scope
                if self._given_up:
                    scope.cancel()
            try:
                async with joined_swarm(peers, paths, mdns=self._mdns, swarm=name) as network:
                    return (await find_hosts(network, None, book=self._book, now=time.time)).sightings
            finally:
                with self._lock:
                    self._running = None
        raise DiscoveryError("the search was given up")
