"""Nodes that share KV pieces over a network in memory: stores, fetching with faults on demand, and a cell's side."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.store import StoreStat
from edgellm.errors import BlockMissing, BlocksNotSent, BlockStoreFull
from edgellm.kv.gate import Link
from edgellm.kv.holdings import Holdings
from edgellm.kv.index import RecordIndex, open_index
from edgellm.kv.node import KvNode, open_kv_node
from edgellm.kv.region import Region
from edgellm.kv.sharing import Sharing
from edgellm.kv.tracker import Tracked, Tracker
from edgellm.p2p.network import PeerAddress
from edgellm.testing.memory_network import MemoryHub, MemoryNetwork, open_hub
from edgellm.types.plan import KvSharing

WHOLE = Region(0, 8, 0, 4)
FRONT, BACK = Region(0, 4, 0, 4), Region(4, 8, 0, 4)
SCOPE = b"scope-of-one-requester----------"
NAMES = tuple(bytes([index]) * 32 for index in range(1, 9))
PIECE = bytes(range(256)) * (5 << 10)
"""1.25 MiB: two blocks."""
TOKENS = 256


@dataclass
class MemoryStore:
    """Blocks in memory (`edgellm.blocks.store.BlockStore`)."""

    quota_bytes: int = 1 << 30
    blocks: dict[Cid, bytes] = field(default_factory=dict)

    async def put(self, blocks: Sequence[bytes]) -> tuple[Cid, ...]:
        await trio.lowlevel.checkpoint()
        if sum(map(len, (*self.blocks.values(), *blocks))) > self.quota_bytes:
            raise BlockStoreFull("the disk is full")
        cids = tuple(Cid.of(block) for block in blocks)
        self.blocks.update(zip(cids, blocks, strict=True))
        return cids

    async def get(self, cid: Cid) -> bytes:
        await trio.lowlevel.checkpoint()
        if cid not in self.blocks:
            raise BlockMissing(f"no block {cid}")
        return self.blocks[cid]

    async def has(self, cid: Cid) -> bool:
        await trio.lowlevel.checkpoint()
        return cid in self.blocks

    async def pin(self, cid: Cid) -> None: ...

    async def unpin(self, cid: Cid) -> None: ...

    async def stat(self) -> StoreStat:
        return StoreStat(len(self.blocks), sum(map(len, self.blocks.values())), 0, self.quota_bytes)

    async def gc(self) -> int:
        freed = sum(map(len, self.blocks.values()))
        self.blocks.clear()
        return freed


@dataclass
class MemoryFetcher:
    """Takes blocks out of the stores of others, as slow as they are (`edgellm.kv.holdings.BlockFetcher`)."""

    stores: dict[str, MemoryStore]
    slow_s: dict[str, float] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    breaks_after: dict[str, int] = field(default_factory=dict)
    """Blocks of each answer that such a holder sends before it breaks off."""
    asked: list[str] = field(default_factory=list)

    measured: dict[str, Link] = field(default_factory=dict)
    """The ways to holders, where they are not fast."""

    def link(self, holder: str) -> Link:
        return self.measured.get(holder, Link(1e10, 0.0001))

    async def fetch(
        self,
        cids: Sequence[Cid],
        holders: Sequence[PeerAddress],
        *,
        timeout_s: float,
        came: Callable[[Cid, bytes], None] | None = None,
    ) -> list[bytes]:
        holder = holders[0].peer
        self.asked.append(holder)
        with trio.move_on_after(timeout_s):
            await trio.sleep(self.slow_s.get(holder, 0))
            if holder in self.dead:
                raise BlocksNotSent(f"cannot reach peer {holder}")
            blocks = []
            for number, cid in enumerate(cids):
                if number == self.breaks_after.get(holder):
                    raise BlocksNotSent(f"peer {holder} broke off")
                blocks.append(await self.stores[holder].get(cid))
                if came is not None:
                    came(cid, blocks[-1])
            return blocks
        raise BlocksNotSent(f"peer {holder} did not answer")


@dataclass
class Node:
    """A host."""

    network: MemoryNetwork
    store: MemoryStore
    fetcher: MemoryFetcher
    kv: KvNode

    @property
    def holdings(self) -> Holdings:
        return self.kv.holdings

    @property
    def peer(self) -> str:
        return self.network.peer

    @property
    def address(self) -> PeerAddress:
        return PeerAddress(self.peer, self.network.addresses)


@dataclass
class Asker:
    """A requester: its tracker and what it shares."""

    network: MemoryNetwork
    index: RecordIndex
    tracker: Tracker
    scope: bytes = SCOPE
    kind: str = "session"

    def sharing(self) -> KvSharing:
        return KvSharing(self.kind, self.scope, b"s" * 32, self.network.peer, (), 1000.0)


@dataclass
class Swarm:
    hub: MemoryHub
    directory: Path
    nursery: trio.Nursery
    stores: dict[str, MemoryStore] = field(default_factory=dict)

    @asynccontextmanager
    async def host(
        self, *, quota_bytes: int = 1 << 30, keeps: bool = True, network: MemoryNetwork | None = None
    ) -> AsyncIterator[Node]:
        """A host that shares."""
        network = network or self.hub.join()
        store = MemoryStore(quota_bytes)
        self.stores[network.peer] = store
        fetcher = MemoryFetcher(self.stores)
        directory = self.directory / network.peer[-8:]
        directory.mkdir(exist_ok=True)
        async with open_kv_node(network, directory, store if keeps else None, fetcher) as kv:
            yield Node(network, store, fetcher, kv)

    @asynccontextmanager
    async def asker(self, name: str = "asker", **said: object) -> AsyncIterator[Asker]:
        """A requester; one of the same name has the same records, and another identity."""
        network = self.hub.join()
        with open_index(self.directory / f"{name}.sqlite") as index:
            yield Asker(network, index, Tracker(network, index), **said)  # type: ignore[arg-type]

    @asynccontextmanager
    async def lease(self, asker: Asker, *nodes: Node) -> AsyncIterator[tuple[Tracked, list[Sharing]]]:
        """A cluster of `asker` on these hosts."""
        with asker.tracker.track(asker.scope, [node.address for node in nodes]) as tracked:
            async with _all([node.kv.share(asker.sharing()) for node in nodes]) as sharings:
                yield tracked, sharings


@asynccontextmanager
async def swarm(directory: Path) -> AsyncIterator[Swarm]:
    async with open_hub() as hub, trio.open_nursery() as nursery:
        yield Swarm(hub, directory, nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _all(contexts: Sequence[object]) -> AsyncIterator[list[Sharing]]:
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(context) for context in contexts]  # type: ignore[arg-type]


async def keep(sharing: Sharing, name: bytes, content: bytes = PIECE, region: Region = WHOLE) -> bool:
    """A cell stores a piece."""
    storing = await sharing.store(name, region)
    if storing is None:
        return False
    try:
        if storing.is_there:
            return True
        return await storing.add(content) and await storing.finish()
    finally:
        await storing.close()


async def get(sharing: Sharing, name: bytes, region: Region = WHOLE, timeout_s: float = math.inf) -> bytes:
    """A cell fetches a piece. Raises BlockMissing."""
    fetching = await sharing.fetch(name, region, timeout_s)
    content = b""
    while blocks := await fetching.next():
        content += b"".join(blocks)
    return content


def some_piece(size_bytes: int = 1 << 20) -> bytes:
    return secrets.token_bytes(size_bytes)
