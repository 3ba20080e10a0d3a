"""A network without sockets: many peers in one process, with faults on demand.

    async with open_hub() as hub:
        host, requester = hub.join(), hub.join()
        host.serve("/edgellm/echo/1", echo)
        stream = await requester.open_stream(host.peer, "/edgellm/echo/1")
        hub.freeze(host.peer)

Streams behave as those of `edgellm.p2p.node`: bounded buffers, a dead peer's stream ends like a closed one, a
frozen peer gives silence, a peer that does not read breaks the writer after a minute.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from edgellm.errors import NetworkError, ProtocolUnknown
from edgellm.p2p.doorkeeper import Doorkeeper
from edgellm.p2p.handlers import run_handler
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import WRITE_STALL_S, PeerAddress, StreamHandler
from edgellm.testing.memory_greeting import meet
from edgellm.types.member import Member

WINDOW_BYTES = 256 * 1024  # yamux's initial window
PROVIDER_TTL_S = 1200.0


@asynccontextmanager
async def open_hub(
    *, clock: Callable[[], float] = trio.current_time, provider_ttl_s: float = PROVIDER_TTL_S
) -> AsyncIterator[MemoryHub]:
    """A hub for peers to join; leaving it stops all of their handlers.

    `clock` (seconds) decides when provider records expire; latency and timeouts follow trio's own clock.
    """
    async with trio.open_nursery() as nursery:
        yield MemoryHub(nursery, clock, provider_ttl_s)
        nursery.cancel_scope.cancel()


class MemoryHub:
    """All peers, the links between them, the faults put on them, and the provider records."""

    def __init__(self, nursery: trio.Nursery, clock: Callable[[], float], provider_ttl_s: float) -> None:
        self.latency_s = 0.0
        self._nursery = nursery
        self._clock = clock
        self._provider_ttl_s = provider_ttl_s
        self._members: dict[str, MemoryNetwork] = {}
        self._frozen: set[str] = set()
        self._cut: set[str] = set()
        self._links: list[_Link] = []
        self._announced: dict[str, dict[str, float]] = {}
        self._wakers: set[trio.Event] = set()
        self._connected: set[frozenset[str]] = set()

    def join(self, identity: Identity | None = None, doorkeeper: Doorkeeper | None = None) -> MemoryNetwork:
        """A new peer; one with the same identity as a killed peer is that peer come back."""
        network = MemoryNetwork(self, identity or Identity.generate(), doorkeeper)
        if network.peer in self._members:
            raise ValueError(f"peer {network.peer} is already there")
        self._members[network.peer] = network
        return network

    def answers(self, peer: str) -> bool:
        """Whether `peer` is there, and neither frozen nor cut off."""
        return peer in self._members and peer not in self._frozen and peer not in self._cut

    def freeze(self, peer: str) -> None:
        """From now on nothing comes from `peer` or reaches it, and nobody is told (SIGSTOP, a lost cable)."""
        self._frozen.add(peer)

    def thaw(self, peer: str) -> None:
        """Ends `freeze`: what was under way arrives."""
        self._frozen.discard(peer)
        self._wake()

    def cut(self, peer: str) -> None:
        """Breaks every stream of `peer` with an error on both sides, and refuses new ones."""
        self._cut.add(peer)
        for link in self._links_of(peer):
            link.sever()

    def mend(self, peer: str) -> None:
        """Ends `cut`: new streams work again."""
        self._cut.discard(peer)

    def kill(self, peer: str) -> None:
        """Ends `peer` as kill -9 does: its handlers stop, and others see its streams end as if closed."""
        network = self._members.pop(peer)
        network.stop()
        for key in network.provided:
            self._announced.setdefault(key, {})[peer] = self._clock()
        for link in self._links_of(peer):
            link.end()
        self._connected = {pair for pair in self._connected if peer not in pair}

    def drop(self, peers: frozenset[str]) -> None:
        """Ends the connection of two peers: their streams break, and they greet again before the next one."""
        gone = [link for link in self._links if link.peers == peers]
        self._links = [link for link in self._links if link.peers != peers]
        self._connected.discard(peers)
        for link in gone:
            link.sever()

    async def _greet(self, near: MemoryNetwork, far: MemoryNetwork) -> None:
        peers = frozenset({near.peer, far.peer})
        if peers in self._connected:
            return
        if (refusal := await meet((near.peer, near.doorkeeper), (far.peer, far.doorkeeper))) is not None:
            raise refusal
        self._connected.add(peers)

    def _links_of(self, peer: str) -> list[_Link]:
        mine = [link for link in self._links if peer in link.peers]
        self._links = [link for link in self._links if peer not in link.peers]
        return mine

    def _silent(self, peers: frozenset[str]) -> bool:
        return not peers.isdisjoint(self._frozen)

    def _wake(self) -> None:
        for link in self._links:
            for pipe in link.pipes:
                pipe.wake()
        for waker in self._wakers:
            waker.set()
        self._wakers.clear()

    async def _until_thawed(self, peers: frozenset[str]) -> None:
        while self._silent(peers):
            waker = trio.Event()
            self._wakers.add(waker)
            await waker.wait()

    async def _open(self, near: MemoryNetwork, peer: str, protocol: str) -> MemoryStream:
        link = _Link(frozenset({near.peer, peer}), (_Pipe(), _Pipe()))
        await trio.sleep(2 * self.latency_s)
        await self._until_thawed(link.peers)
        far = self._members.get(peer)
        if not near.alive:
            raise NetworkError(f"this node ({near.peer}) is closed")
        if far is None or not link.peers.isdisjoint(self._cut):
            raise NetworkError(f"cannot reach peer {peer}: connection refused")
        await self._greet(near, far)
        handler = far.handlers.get(protocol)
        if handler is None:
            raise ProtocolUnknown(f"peer {peer} does not speak {protocol}")
        self._links = [known for known in self._links if not known.done]
        self._links.append(link)
        self._nursery.start_soon(far.handle, protocol, handler, MemoryStream(self, near.peer, link, 1))
        return MemoryStream(self, peer, link, 0)


@dataclass
class _Pipe:
    """One direction of a stream."""

    chunks: deque[tuple[float, bytes]] = field(default_factory=deque)
    size_bytes: int = 0
    ended: bool = False
    broken: bool = False
    deaf: bool = False  # nobody reads it any more
    _waiting: trio.Event = field(default_factory=trio.Event)

    def wake(self) -> None:
        self._waiting.set()
        self._waiting = trio.Event()

    async def wait(self, seconds: float = math.inf) -> None:
        waiting = self._waiting
        with trio.move_on_after(seconds):
            await waiting.wait()


@dataclass
class _Link:
    """One stream: the pipe from the peer that opened it, and the pipe back."""

    peers: frozenset[str]
    pipes: tuple[_Pipe, _Pipe]

    @property
    def done(self) -> bool:
        return all(pipe.broken or (pipe.ended and not pipe.chunks) for pipe in self.pipes)

    def sever(self) -> None:
        for pipe in self.pipes:
            pipe.broken = True
            pipe.wake()

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.ended = pipe.deaf = True
            pipe.wake()


class MemoryStream:
    """One end of a stream; what it promises is written at `edgellm.p2p.network.Stream`."""

    def __init__(self, hub: MemoryHub, peer: str, link: _Link, end: int) -> None:
        self._hub = hub
        self._peer = peer
        self._link = link
        self._out = link.pipes[end]
        self._in = link.pipes[1 - end]

    @property
    def peer(self) -> str:
        return self._peer

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        remaining = memoryview(bytes(data))
        pipe = self._out
        stalled_at = trio.current_time() + WRITE_STALL_S
        while remaining:
            if pipe.broken or pipe.deaf or pipe.ended:
                raise NetworkError(f"the stream to peer {self._peer} is broken")
            room = WINDOW_BYTES - pipe.size_bytes
            if room > 0:
                chunk, remaining = bytes(remaining[:room]), remaining[room:]
                pipe.chunks.append((trio.current_time() + self._hub.latency_s, chunk))
                pipe.size_bytes += len(chunk)
                pipe.wake()
                stalled_at = trio.current_time() + WRITE_STALL_S
            elif trio.current_time() >= stalled_at:
                raise NetworkError(f"peer {self._peer} does not read its stream")
            else:
                await pipe.wait(stalled_at - trio.current_time())

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        await trio.lowlevel.checkpoint()
        pipe = self._in
        while True:
            if pipe.broken:
                raise NetworkError(f"the stream from peer {self._peer} was reset")
            if self._hub._silent(self._link.peers):
                await pipe.wait()
            elif pipe.chunks and pipe.chunks[0][0] <= trio.current_time():
                return self._take(max_bytes)
            elif pipe.chunks:
                await pipe.wait(pipe.chunks[0][0] - trio.current_time())
            elif pipe.ended:
                return b""
            else:
                await pipe.wait()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self._out.ended = True
        self._out.wake()

    async def reset(self) -> None:
        await trio.lowlevel.checkpoint()
        self._link.sever()

    def _take(self, max_bytes: int) -> bytes:
        ready_at, chunk = self._in.chunks.popleft()
        if len(chunk) > max_bytes:
            self._in.chunks.appendleft((ready_at, chunk[max_bytes:]))
            chunk = chunk[:max_bytes]
        self._in.size_bytes -= len(chunk)
        self._in.wake()
        return chunk


class MemoryNetwork:
    """One peer of a hub; what it promises is written at `edgellm.p2p.network.Network`."""

    def __init__(self, hub: MemoryHub, identity: Identity, doorkeeper: Doorkeeper | None = None) -> None:
        self.identity = identity
        self.doorkeeper = doorkeeper
        self.alive = True
        self.handlers: dict[str, StreamHandler] = {}
        self.provided: set[str] = set()
        self._running: set[trio.CancelScope] = set()
        self._hub = hub
        self._known: set[str] = set()

    @property
    def peer(self) -> str:
        return self.identity.peer

    @property
    def addresses(self) -> tuple[str, ...]:
        return (f"/memory/1/p2p/{self.peer}",)

    async def open_stream(
        self, peer: str, protocol: str, *, addresses: Sequence[str] = (), timeout_s: float = 10.0
    ) -> MemoryStream:
        with trio.move_on_after(timeout_s):
            stream = await self._hub._open(self, peer, protocol)
            self._meet(peer)
            return stream
        raise NetworkError(f"cannot reach peer {peer}: no answer within {timeout_s:g} s")

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        self.handlers[protocol] = handler

    async def provide(self, key: str) -> None:
        await trio.lowlevel.checkpoint()
        self.provided.add(key)
        self._hub._announced.setdefault(key, {})[self.peer] = self._hub._clock()

    def withdraw(self, key: str) -> None:
        if key in self.provided:
            self.provided.discard(key)
            self._hub._announced[key][self.peer] = self._hub._clock()

    async def find_providers(self, key: str) -> tuple[PeerAddress, ...]:
        await trio.lowlevel.checkpoint()
        hub, found = self._hub, []
        for peer, announced_at in hub._announced.get(key, {}).items():
            member = hub._members.get(peer)
            renewed = member is not None and key in member.provided
            if renewed or hub._clock() < announced_at + hub._provider_ttl_s:
                found.append(PeerAddress(peer, ("/memory/1",)))
        return tuple(found)

    async def connect(self, multiaddr: str, *, timeout_s: float = 10.0) -> str:
        peer = multiaddr.rpartition("/p2p/")[2]
        with trio.move_on_after(timeout_s):
            await trio.sleep(2 * self._hub.latency_s)
            await self._hub._until_thawed(frozenset({self.peer, peer}))
            if peer not in self._hub._members or not self._hub._cut.isdisjoint({self.peer, peer}):
                raise NetworkError(f"cannot reach peer {peer} at {multiaddr}: connection refused")
            await self._hub._greet(self, self._hub._members[peer])
            self._meet(peer)
            return peer
        raise NetworkError(f"cannot reach peer {peer} at {multiaddr}: no answer within {timeout_s:g} s")

    def mapped_port(self, port: int) -> tuple[str, int] | None:
        return None

    def relay_of(self, peer: str) -> str:
        return ""

    def connected_peers(self) -> frozenset[str]:
        there = self._known & self._hub._members.keys() - self._hub._cut
        return frozenset(there) if self.alive and self.peer not in self._hub._cut else frozenset()

    def member(self, peer: str) -> Member | None:
        return self.doorkeeper.member(peer) if self.doorkeeper else None

    async def drop(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()
        self._hub.drop(frozenset({self.peer, peer}))
        self._known.discard(peer)
        if peer in self._hub._members:
            self._hub._members[peer]._known.discard(self.peer)

    async def handle(self, protocol: str, handler: StreamHandler, stream: MemoryStream) -> None:
        """Runs one handler until it ends or this peer is killed."""
        with trio.CancelScope() as running:
            if self.alive:
                self._running.add(running)
                await run_handler(protocol, handler, stream)
                self._running.discard(running)

    def stop(self) -> None:
        """Stops all handlers, and every later call on this peer fails."""
        self.alive = False
        for running in self._running:
            running.cancel()

    def _meet(self, peer: str) -> None:
        self._known.add(peer)
        if peer in self._hub._members:
            self._hub._members[peer]._known.add(self.peer)
