"""Looks at the swarm while somebody watches, and tells who came, went and changed.

Newcomers are found in the DHT every few seconds. Who is shown is asked for its advert again every `CHECK_S`, each by a task
of its own, and leaves the view when it fails to answer twice in a row: after 9 seconds at most where it just went silent, at
once where its machine says that nobody listens any more. What the DHT lists counts for nothing here, as a host that died stays
listed for 20 minutes. Swarms of more than `FULL_PACE_PEERS` are asked in proportion less often.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

import structlog
import trio

from edgellm.console import views
from edgellm.console.problems import problem_of
from edgellm.console.sources import Busy, Event
from edgellm.console.swarm import differs, models_of, peer_of, refused_of
from edgellm.discovery.collect import SequenceBook, Sighting, UnbelievableAdvert, ask_host
from edgellm.discovery.keys import HOSTS_KEY
from edgellm.errors import DiscoveryError, EdgeError, NetworkError, ProtocolViolation, unwrapped
from edgellm.p2p.network import Network, PeerAddress

log = structlog.get_logger(__name__)

SEARCH_S = 3.0
CHECK_S = 2.0
ASK_S = 3.0
AGAIN_S = 0.2
ANSWER_S = 1.0
"""What a first look waits for answers."""
MISSES = 2
FULL_PACE_PEERS = 50
MAX_PEERS = 512
MAX_ASKED_AT_ONCE = 32
IDLE_S = 20.0
"""For so long after the last question the swarm is still looked at, so that the next answer is there at once."""
FIRST_LOOK_S = 15.0
MAX_WATCHERS = 64
MAX_WAITING = 256
"""Events that one watcher may be behind; one that is further is sent away, and finds all in a new snapshot."""
KEPT_HAPPENINGS = 50


class SwarmWatcher:
    """What is known of the swarm now (`edgellm.console.sources.SwarmSource`)."""

    def __init__(self, host_of: Callable[[str], str | None] = lambda peer: None) -> None:
        """`host_of`: the id of a host that was started from here, by its peer id."""
        self._host_of = host_of
        self._join: tuple[str, ...] = ()
        self._problem: views.Problem | None = None
        self._shown: dict[str, views.Peer] = {}
        """As it was told last."""
        self._round_trips_s: dict[str, float] = {}
        self._refused: dict[str, str] = {}
        self._seen_at: float | None = None
        self._recent: deque[views.Happening] = deque(maxlen=KEPT_HAPPENINGS)
        self._watchers: set[trio.MemorySendChannel[Event]] = set()
        self._asked_at = -IDLE_S
        self._news = trio.Event()
        self._meeting = trio.CapacityLimiter(MAX_ASKED_AT_ONCE)
        self._following = trio.CapacityLimiter(MAX_ASKED_AT_ONCE)
        """Of their own, so that many who are listed and gone hold up nobody who is there."""

    # --- for who shows it

    async def current(self) -> views.Swarm:
        """As it is now; waits for a first look where nobody watched."""
        self._asked_at = trio.current_time()
        self._tell()
        with trio.move_on_after(FIRST_LOOK_S):
            while self._seen_at is None and self._problem is None:
                await self._news.wait()
        return self._swarm()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
        """Raises Busy where too many watch."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise Busy(f"{MAX_WATCHERS} pages watch the swarm already", remedy="close some of them")
        sending, receiving = trio.open_memory_channel[Event](MAX_WAITING)
        self._watchers.add(sending)
        self._tell()
        try:
            sending.send_nowait(Event("snapshot", self._swarm()))
            yield receiving
        finally:
            self._asked_at = trio.current_time()
            self._watchers.discard(sending)
            sending.close()

    def latency_s(self, peer: str) -> float | None:
        """The last round trip to a peer that is shown."""
        return self._round_trips_s.get(peer)

    # --- for who is in the swarm

    async def look(self, network: Network, join: tuple[str, ...], *, among_others: bool = False) -> None:
        """Looks through `network` until it is cancelled; `join` are addresses through which others join the same swarm.

        `among_others`: somebody must be connected; raises DiscoveryError where nobody is any more.
        """
        self._join, self._problem = join, None
        self._snapshot()
        while True:
            while not self._is_wanted():
                await self._news.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._search, network, SequenceBook(), nursery, among_others)
                while self._is_wanted():
                    await trio.sleep(1.0)
                nursery.cancel_scope.cancel()
            # Nobody knows how it is from now on.
            self._forget()

    async def keep_looking(self, network: Network, join: tuple[str, ...]) -> None:
        """Looks until it is cancelled; what fails is told and tried again."""
        while True:
            try:
                with unwrapped():
                    await self.look(network, join)
            except EdgeError as error:
                self.trouble(error)
            except Exception as error:
                # The session whose console looks is not to end by it.
                log.exception("looking at the swarm failed")
                self.trouble(EdgeError(f"looking at the swarm failed: {error!r}"))
            await trio.sleep(SEARCH_S)

    def trouble(self, error: EdgeError) -> None:
        """The swarm cannot be looked at."""
        problem = problem_of(error)
        if problem != self._problem or self._shown:
            self._forget()
            self._problem = problem
            self._snapshot()

    async def _search(
        self, network: Network, book: SequenceBook, nursery: trio.Nursery, among_others: bool
    ) -> None:
        asking: set[str] = set()

        async def meet(provider: PeerAddress) -> None:
            async with self._meeting:
                found = await self._ask(network, book, provider)
            asking.discard(provider.peer)
            if isinstance(found, str):
                self._refused[provider.peer] = found
            else:
                self._refused.pop(provider.peer, None)
                self._saw(found)
                nursery.start_soon(self._follow, network, book, provider)

        lonely = 0
        while True:
            lonely = lonely + 1 if among_others and not network.connected_peers() else 0
            if lonely > 1:
                raise DiscoveryError(
                    "the connection to the swarm is lost", remedy="it is tried again; is this machine online?"
                )
            listed = [
                provider
                for provider in await network.find_providers(HOSTS_KEY)
                if provider.peer != network.peer
            ][:MAX_PEERS]
            self._refused = {
                provider.peer: self._refused[provider.peer]
                for provider in listed
                if provider.peer in self._refused
            }
            for provider in listed:
                if provider.peer not in self._shown and provider.peer not in asking:
                    asking.add(provider.peer)
                    nursery.start_soon(meet, provider)
            # Not for all of them: those that are gone answer never.
            with trio.move_on_after(ANSWER_S):
                while asking:
                    await trio.sleep(0.05)
            first, self._seen_at = self._seen_at is None, time.time()
            if first:
                self._snapshot()
            await trio.sleep(SEARCH_S)

    async def _follow(self, network: Network, book: SequenceBook, provider: PeerAddress) -> None:
        """Asks one host again and again until it is gone."""
        misses = 0
        while misses < MISSES:
            pace = max(1.0, len(self._shown) / FULL_PACE_PEERS)
            await trio.sleep(AGAIN_S if misses else CHECK_S * pace)
            async with self._following:
                found = await self._ask(network, book, provider)
            if not isinstance(found, str):
                misses = 0
                self._saw(found)
            elif found == "unreachable":
                misses += 1
            else:
                break
        self._lost(provider.peer)

    async def _ask(self, network: Network, book: SequenceBook, provider: PeerAddress) -> Sighting | str:
        """What a host says of itself now, or why that counts for nothing."""
        with trio.move_on_after(ASK_S):
            try:
                return await ask_host(network, provider, book=book, now=time.time, timeout_s=ASK_S)
            except UnbelievableAdvert as error:
                return error.fault
            except (ProtocolViolation, ValueError):
                return "malformed"
            except NetworkError:
                pass
        return "unreachable"

    # --- what is kept, and told

    def _saw(self, sighting: Sighting) -> None:
        peer = peer_of(sighting, self._host_of(sighting.advert.peer))
        self._round_trips_s[peer.peer] = peer.round_trip_s
        before = self._shown.get(peer.peer)
        if before is not None and not differs(before, peer):
            return
        self._shown[peer.peer] = peer
        self._told("changed" if before else "joined", peer)

    def _lost(self, peer: str) -> None:
        self._round_trips_s.pop(peer, None)
        gone = self._shown.pop(peer, None)
        if gone is not None:
            self._told("left", gone)

    def _told(self, what: Literal["joined", "left", "changed"], peer: views.Peer) -> None:
        now = time.time()
        if self._seen_at is None:
            # The first look is told as a whole.
            return
        self._seen_at = now
        if what != "changed":
            self._recent.append(views.Happening(at=now, what=what, peer=peer.peer, name=peer.name))
        self._send(Event(what, views.PeerEvent(peer=peer, seen_at=now)))

    def _forget(self) -> None:
        self._shown.clear()
        self._round_trips_s.clear()
        self._refused.clear()
        self._seen_at = None

    def _swarm(self) -> views.Swarm:
        peers = sorted(self._shown.values(), key=lambda peer: (peer.name, peer.peer))
        models, more_models = models_of(peers)
        return views.Swarm(
            peers=peers,
            models=models,
            more_models=more_models,
            refused=refused_of(self._refused.values()),
            seen_at=self._seen_at,
            problem=self._problem,
            join=list(self._join),
            recent=list(self._recent),
        )

    def _snapshot(self) -> None:
        self._send(Event("snapshot", self._swarm()))
        self._tell()

    def _send(self, event: Event) -> None:
        for watcher in tuple(self._watchers):
            try:
                watcher.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._watchers.discard(watcher)
                watcher.close()

    def _tell(self) -> None:
        """Wakes whoever waits for something to be different."""
        self._news.set()
        self._news = trio.Event()

    def _is_wanted(self) -> bool:
        return bool(self._watchers) or trio.current_time() - self._asked_at < IDLE_S
