"""A requester's part: keeps the records of its scopes across clusters, and answers the members of those that live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from edgellm.errors import NetworkError, ProtocolViolation
from edgellm.kv.exchange import Known, Use, ask_measure, ask_settle, serve_records
from edgellm.kv.index import RecordIndex
from edgellm.kv.records import Record, open_batch
from edgellm.kv.region import Region
from edgellm.kv.sharing import GONE
from edgellm.p2p.network import Network, PeerAddress

log = structlog.get_logger(__name__)

SETTLE_S = 1.5
MAX_SAMPLED = 8
MAX_COUNTED = 64
"""Holders whose share of a cluster's prompts is told apart."""


@dataclass
class Tracked:
    """One cluster whose members share: who they are, and what they said of the pieces that they fetched."""

    scope: bytes
    members: tuple[PeerAddress, ...]
    tokens: Counter[str] = field(default_factory=Counter)
    """Prompt tokens that came from KV pieces, by holder. Each rank counts its own; see `used`."""
    bytes_in: int = 0
    failures: int = 0

    def follow(self, members: Sequence[PeerAddress]) -> None:
        """These share from now on."""
        self.members = tuple(members)

    def used(self) -> tuple[str, ...]:
        """Peers whose pieces were used, the one with most tokens first."""
        return tuple(holder for holder, _ in self.tokens.most_common())


class _Tell(Protocol):
    async def __call__(
        self, network: Network, whom: PeerAddress, scope: bytes, *, timeout_s: float
    ) -> None: ...


class Tracker:
    """Answers `/edgellm/kv/1` for a requester (`edgellm.kv.exchange.Answers`)."""

    def __init__(self, network: Network, index: RecordIndex) -> None:
        self._network = network
        self._index = index
        self._tracked: list[Tracked] = []
        serve_records(network, self)

    @contextmanager
    def track(self, scope: bytes, members: Sequence[PeerAddress]) -> Iterator[Tracked]:
        """Answers these members about `scope` while the context lasts."""
        tracked = Tracked(scope, tuple(members))
        self._tracked.append(tracked)
        try:
            yield tracked
        finally:
            self._tracked.remove(tracked)

    async def gather(self, tracked: Tracked) -> None:
        """Returns once all members have told what they keep, or after `SETTLE_S`.

        Without it a cluster that answers one short question would go before it has said what it computed.
        """

        await self._tell_all(tracked, ask_settle, "say which KV pieces it keeps")

    async def prepare(self, tracked: Tracked) -> None:
        """Returns once all members know how fast those who hold pieces of the scope can be reached, or after `SETTLE_S`.

        For a question whose pieces were just computed, by hosts that these members have never fetched anything from.
        """
        await self._tell_all(tracked, ask_measure, "measure the ways to holders of KV pieces")

    async def _tell_all(self, tracked: Tracked, tell: _Tell, to_do: str) -> None:
        async def ask(member: PeerAddress) -> None:
            try:
                await tell(self._network, member, tracked.scope, timeout_s=SETTLE_S)
            except NetworkError as error:
                log.info(f"a member did not {to_do} in time", peer=member.peer, error=str(error))

        async with trio.open_nursery() as nursery:
            for member in tracked.members:
                nursery.start_soon(ask, member)

    async def find(self, peer: str, scope: bytes, names: tuple[bytes, ...], region: Region) -> Known:
        self._of(peer, scope)
        known = await self._index.find(scope, names)
        records = tuple(
            record
            for of_name in known.values()
            for record in of_name
            if record.holder != peer and record.region.overlaps(region)
        )
        return await self._with_addresses(records)

    async def sample(self, peer: str, scope: bytes) -> Known:
        self._of(peer, scope)
        records = await self._index.one_of_each_holder(scope, but=peer, limit=MAX_SAMPLED)
        return await self._with_addresses(records)

    async def announce(
        self, peer: str, scope: bytes, batch: bytes, addresses: tuple[str, ...], uses: tuple[Use, ...]
    ) -> int:
        tracked = self._of(peer, scope)
        kept = 0
        if batch:
            opened = open_batch(batch)
            if opened.holder != peer or opened.scope != scope:
                raise ProtocolViolation("records of another holder or scope")
            kept = await self._index.put(opened.records)
            await self._index.saw(PeerAddress(peer, addresses))
        for use in uses:
            await self._note(tracked, peer, use)
        return kept

    async def settle(self, peer: str, scope: bytes) -> None:
        raise ProtocolViolation("nobody tells a tracker to settle")

    async def measure(self, peer: str, scope: bytes) -> None:
        raise ProtocolViolation("nobody tells a tracker to measure")

    async def _note(self, tracked: Tracked, peer: str, use: Use) -> None:
        holder = use.holder or peer
        if use.outcome == "used":
            if holder in tracked.tokens or len(tracked.tokens) < MAX_COUNTED:
                tracked.tokens[holder] += use.tokens
            tracked.bytes_in += use.size_bytes if holder != peer else 0
        elif use.outcome != "late":
            tracked.failures += use.outcome != GONE
            # Of that holder alone: a member that lies about it costs others a miss.
            for record in (await self._index.find(tracked.scope, [use.name], holder=holder)).get(
                use.name, ()
            ):
                if record.region == use.region:
                    await self._index.forget(record)

    async def _with_addresses(self, records: tuple[Record, ...]) -> Known:
        addresses = await self._index.addresses({record.holder for record in records})
        return Known(records, tuple(PeerAddress(holder, where) for holder, where in addresses.items()))

    def _of(self, peer: str, scope: bytes) -> Tracked:
        for tracked in self._tracked:
            if tracked.scope == scope and any(member.peer == peer for member in tracked.members):
                return tracked
        raise ProtocolViolation("not a member of a cluster that shares this scope")
