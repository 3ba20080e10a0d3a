"""KV sharing of a host: its store, its records, and the leases that use them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from edgellm.blocks.store import BlockStore
from edgellm.errors import ProtocolViolation, unwrapped
from edgellm.kv.exchange import Known, Use, serve_records
from edgellm.kv.holdings import BlockFetcher, Holdings
from edgellm.kv.index import HELD, open_index
from edgellm.kv.providers import Providers
from edgellm.kv.region import Region
from edgellm.kv.sharing import Sharing
from edgellm.p2p.network import Network, PeerAddress
from edgellm.types.plan import KvSharing

log = structlog.get_logger(__name__)

FLUSH_S = 5.0
"""How old the figures may be that another process reads."""
MEASURE_S = 1.2
"""Of a question that waits for it."""
UNSAID_QUOTA_BYTES = 20 << 30
"""Taken for a store that has no quota of its own (an IPFS daemon's)."""
SHARE_OF_A_LEASE = 2
"""One lease may fill the quota's half: a hostile one does not push everybody else's pieces out."""


class KvNode:
    """What a host does about KV pieces. Answers others as well (`edgellm.kv.exchange.Answers`). Made by `open_kv_node`."""

    def __init__(self, holdings: Holdings, quota_bytes: int) -> None:
        self.holdings = holdings
        self._quota_bytes = quota_bytes
        self._sharings: list[Sharing] = []
        serve_records(holdings.network, self)

    @asynccontextmanager
    async def share(self, kv: KvSharing) -> AsyncIterator[Sharing]:
        """What one lease may do with the pieces of its scope, while the context lasts."""
        sharing = Sharing(self.holdings, kv, most_stored_bytes=self._quota_bytes // SHARE_OF_A_LEASE)
        shared = kv.scope != "session"
        if shared:
            self.holdings.providers.follow(kv.scope_id)
        self._sharings.append(sharing)
        try:
            with unwrapped():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_unharmed, sharing.run)
                    yield sharing
                    nursery.cancel_scope.cancel()
        finally:
            self._sharings.remove(sharing)
            if shared:
                self.holdings.providers.unfollow(kv.scope_id)

    @asynccontextmanager
    async def serve(self, kv: KvSharing, socket: Path) -> AsyncIterator[None]:
        """Serves `proto/blocks.proto` for one lease on `socket` while the context lasts. Raises CellError."""
        # gRPC's server takes some 20 MB, which a host that shares nothing need not have.
        from edgellm.kv.service import serve_pieces

        async with self.share(kv) as sharing, serve_pieces(sharing, socket):
            yield

    async def run(self) -> None:
        """What goes on beside all leases, until it is cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_unharmed, self.holdings.providers.run)
            nursery.start_soon(_unharmed, self._flush)

    async def find(self, peer: str, scope: bytes, names: tuple[bytes, ...], region: Region) -> Known:
        if not self.holdings.providers.has(scope):
            raise ProtocolViolation("nothing of such a scope is for others to ask about here")
        known = await self.holdings.own_records(scope, names)
        records = tuple(
            record for of_name in known.values() for record in of_name if record.region.overlaps(region)
        )
        return Known(records, (PeerAddress(self.holdings.peer, self.holdings.addresses),))

    async def sample(self, peer: str, scope: bytes) -> Known:
        raise ProtocolViolation("this node keeps no records of others")

    async def announce(
        self, peer: str, scope: bytes, batch: bytes, addresses: tuple[str, ...], uses: tuple[Use, ...]
    ) -> int:
        raise ProtocolViolation("this node keeps no records of others")

    async def settle(self, peer: str, scope: bytes) -> None:
        for sharing in self._sharings:
            if sharing.tracker == peer and sharing.scope == scope:
                await sharing.settle()

    async def measure(self, peer: str, scope: bytes) -> None:
        async with trio.open_nursery() as nursery:
            for sharing in self._sharings:
                if sharing.tracker == peer and sharing.scope == scope:
                    nursery.start_soon(sharing.measure, MEASURE_S)

    async def _flush(self) -> None:
        figures = self.holdings.figures
        try:
            while True:
                await trio.sleep(FLUSH_S)
                if taken := figures.take():
                    await self.holdings.index.add_figures(taken)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self.holdings.index.add_figures(figures.take())


async def _unharmed(work: Callable[[], Awaitable[None]]) -> None:
    """A defect in sharing ends sharing, not the lease or the node around it."""
    try:
        await work()
    except Exception:
        log.exception("sharing of KV pieces stopped")


@asynccontextmanager
async def open_kv_node(
    network: Network,
    directory: Path,
    store: BlockStore | None,
    fetcher: BlockFetcher,
    *,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[KvNode]:
    """A node that shares while the context lasts; its records stay in `directory`, which must be there.

    Without a store it keeps nothing, and its cells still fetch what others keep.
    """
    quota_bytes = ((await store.stat()).quota_bytes or UNSAID_QUOTA_BYTES) if store is not None else 0
    with open_index(directory / HELD) as index:
        holdings = Holdings(network, index, store, fetcher, Providers(network, now), now)
        async with trio.open_nursery() as nursery:
            node = KvNode(holdings, quota_bytes)
            nursery.start_soon(node.run)
            yield node
            nursery.cancel_scope.cancel()
