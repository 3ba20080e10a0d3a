"""What a node has for sharing KV: its blocks, its records, its links to others. All leases of the node use the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgellm.blocks.cid import Cid
from edgellm.blocks.store import BlockStore
from edgellm.errors import BlockMissing
from edgellm.kv.distrust import Distrust
from edgellm.kv.figures import Figures
from edgellm.kv.gate import Link, Verdict, worth_fetching
from edgellm.kv.index import RecordIndex
from edgellm.kv.providers import Providers
from edgellm.kv.records import Record
from edgellm.p2p.network import Network, PeerAddress


class BlockFetcher(Protocol):
    """Blocks from other nodes (`edgellm.blocks.exchange`)."""

    async def fetch(
        self,
        cids: Sequence[Cid],
        holders: Sequence[PeerAddress],
        *,
        timeout_s: float,
        came: Callable[[Cid, bytes], None] | None = None,
    ) -> list[bytes]:
        """The blocks, each of which matches its CID, in order; `came` is told of each at once.

        Raises BlockMissing; BlocksNotSent where a holder failed.
        """

    def link(self, holder: str) -> Link:
        """What was measured of the way to `holder`."""


@dataclass(frozen=True, slots=True)
class Holdings:
    network: Network
    index: RecordIndex
    store: BlockStore | None
    """None: this node keeps nothing."""
    fetcher: BlockFetcher
    providers: Providers
    now: Callable[[], float]
    figures: Figures = field(default_factory=Figures)
    distrust: Distrust = field(default_factory=Distrust)

    @property
    def peer(self) -> str:
        return self.network.peer

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs of this node without its id."""
        return tuple(address.rsplit("/p2p/", 1)[0] for address in self.network.addresses)

    def cost_s(self, record: Record) -> float:
        """How long fetching a piece should take: 0 for an own one, infinite where nothing is known of its holder."""
        if record.holder == self.peer:
            return 0.0
        link = self.fetcher.link(record.holder)
        if not link.throughput_bytes_s:
            return math.inf
        return link.rtt_s + record.size_bytes / link.throughput_bytes_s

    def gate(self, there: Sequence[Sequence[Record]], chunk_tokens: int, prefill_tok_s: float) -> Verdict:
        """How many of the first chunks are worth fetching; each is given as the records of its pieces."""
        remote: list[Counter[str]] = []
        for chunk in there:
            remote.append(Counter())
            for record in chunk:
                if record.holder != self.peer:
                    remote[-1][record.holder] += record.size_bytes
        links = {holder: self.fetcher.link(holder) for at in remote for holder in at}
        return worth_fetching(remote, links, chunk_tokens=chunk_tokens, prefill_tok_s=prefill_tok_s)

    async def own_records(self, scope: bytes, names: Sequence[bytes]) -> dict[bytes, tuple[Record, ...]]:
        """Of pieces whose blocks are all here; others are forgotten."""
        if self.store is None:
            return {}
        known = await self.index.find(scope, names, holder=self.peer)
        there: dict[bytes, tuple[Record, ...]] = {}
        for name, records in known.items():
            # The ends only: blocks of a piece are put, used and evicted together, and a fetch notices what is missing.
            whole = tuple(
                [
                    record
                    for record in records
                    if await self._has(record, record.cids[:: max(1, len(record.cids) - 1)])
                ]
            )
            if whole:
                there[name] = whole
        return there

    async def has(self, record: Record) -> bool:
        """Whether all blocks of a piece are here; its own record goes where they are not."""
        return await self._has(record, record.cids)

    async def _has(self, record: Record, cids: Sequence[Cid]) -> bool:
        if self.store is None:
            return False
        for cid in cids:
            if not await self.store.has(cid):
                if record.holder == self.peer:
                    await self.index.forget(record)
                return False
        return True

    async def own_blocks(self, record: Record, cids: Sequence[Cid]) -> list[bytes]:
        """Blocks of an own piece. Raises BlockMissing, and forgets the piece then."""
        if self.store is None:
            raise BlockMissing("this node keeps no blocks")
        try:
            return [await self.store.get(cid) for cid in cids]
        except BlockMissing:
            await self.index.forget(record)
            raise
