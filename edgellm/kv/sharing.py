"""What one member of a cluster does with KV pieces: finds, fetches, keeps and reports them. All of it bounded and timed.

One `Sharing` for each lease that shares. It sees names, regions and ciphertext, never keys. What cannot be had is a miss.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import structlog
import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.store import MAX_BLOCK_BYTES
from edgellm.errors import BlockMissing, BlocksNotSent, EdgeError, NetworkError
from edgellm.kv.ahead import Ahead, Came
from edgellm.kv.announcer import Announcer
from edgellm.kv.exchange import Known, Use, announce, ask_find
from edgellm.kv.holdings import Holdings
from edgellm.kv.records import Record, seal_batch
from edgellm.kv.region import Region, cover
from edgellm.kv.transfer import MAX_PIECE_BYTES, Fetching, Storing
from edgellm.p2p.network import PeerAddress
from edgellm.types.plan import KvSharing

log = structlog.get_logger(__name__)

FIND_S = 1.8
"""Under the cell's own patience (2 s), so that it hears what is known by then."""
TRACKER_S = 1.5
FETCH_S = 10.0
RECORD_LIFETIME_S = 7 * 86400.0
MAX_REMEMBERED = 16_384
"""Pieces found or fetched lately, of one lease."""
DISTRUST_S = 600.0
"""How long a holder is avoided whose piece did not open."""
UNREACHABLE_S = 20.0
"""How long a peer is avoided that did not answer."""
MAX_UNPROVEN_BYTES = 64 << 20
"""Of fetched pieces that a cell has not said to be good yet, which are kept only then; the oldest are forgotten first."""
QUIET_S = 0.2
"""A cell that has stored nothing for so long has nothing left to store: it does so beside the answer, not after it."""
REPORTS_S = 1.2
"""How long reports of fetched pieces are waited for: a cell sends them after the answer, and of some none."""
STILL_SENDS_S = 1.0
"""A holder whose last block came no longer ago is slow, and not gone."""
GONE = "gone"
"""What a member says of a piece that its holder does not have any more."""
REPEATED = 2048
"""Own records that a new tracker is told: one of the same scope may never have heard of them."""

LEAST_RUN_S = 0.5
"""What the fetch of a run of chunks has at least, however little was predicted: machines stall."""
SAMPLE_BYTES = 2 << 20
"""Fetched of a holder to measure the way to it."""
MAX_SAMPLED = 8
"""Holders that are measured when a lease begins."""
SAMPLE_S = 10.0
MEASURED_ANEW_S = 2.0
"""How soon at the earliest ways are measured again."""

_Key = tuple[bytes, Region]
_V = TypeVar("_V")


class Outcome(StrEnum):
    """What a cell says of a piece that it fetched."""

    USED = "used"
    NOT_AUTHENTIC = "not authentic"
    WRONG_SIZE = "wrong size"
    NOT_FINITE = "not finite"
    LATE = "late"


@dataclass(frozen=True, slots=True)
class FoundPiece:
    region: Region
    size_bytes: int
    holder: str
    """Empty: this node."""


@dataclass
class Run:
    """Chunks that were found together, and how long fetching them may take from its beginning on."""

    timeout_s: float
    begun: float | None = None

    def deadline(self, now: float) -> float:
        self.begun = self.begun or now
        return self.begun + self.timeout_s


@dataclass(frozen=True, slots=True)
class _Choice:
    """Records of one piece, the best first."""

    records: tuple[Record, ...]
    run: Run


class Sharing:
    """What a cell may ask of its node (`edgellm.kv.service`). Made by `edgellm.kv.node.KvNode.share`."""

    def __init__(self, node: Holdings, kv: KvSharing, *, most_stored_bytes: int) -> None:
        self._node = node
        self._kv = kv
        self._scope = kv.scope_id
        self._left_bytes = most_stored_bytes
        self._tracker = PeerAddress(kv.tracker, kv.tracker_addresses)
        self._announcer: Announcer[Record | Use] = Announcer(self._tell, self._lost)
        self._ahead = Ahead(self._fetch_ahead)
        self._tasks: trio.Nursery | None = None
        self._heard_at: dict[str, float] = {}
        """When a block last came from a holder."""
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._found: OrderedDict[_Key, _Choice] = OrderedDict()
        self._fetched: OrderedDict[_Key, tuple[Record, float]] = OrderedDict()
        self._storing = 0
        self._stored_at = 0.0
        self._unproven: OrderedDict[_Key, list[bytes]] = OrderedDict()
        self._unproven_bytes = 0
        self._measuring = trio.Lock()
        self._measured_at = -math.inf

    @property
    def tracker(self) -> str:
        """The peer that may ask to settle."""
        return self._kv.tracker

    @property
    def scope(self) -> bytes:
        return self._scope

    async def run(self) -> None:
        """Announces, and keeps what was fetched, until it is cancelled."""
        async with trio.open_nursery() as nursery:
            self._tasks = nursery
            nursery.start_soon(self._announcer.run)
            nursery.start_soon(self.measure, SAMPLE_S)
            for record in await self._node.index.of_holder(self._scope, self._node.peer, limit=REPEATED):
                if await self._node.has(record):
                    self._have(record)

    async def find(
        self, names: Sequence[bytes], region: Region, chunk_tokens: int
    ) -> tuple[tuple[FoundPiece, ...], ...]:
        """The pieces of the first chunks, as far as fetching them pays; () after `FIND_S`."""
        figures = self._node.figures
        with trio.move_on_after(FIND_S):
            known = await self._known(names, region)
            run = Run(FETCH_S)
            there = self._covered(names, region, known, run)
            verdict = self._node.gate(there, chunk_tokens, self._kv.prefill_tok_s)
            run.timeout_s = min(FETCH_S, max(verdict.timeout_s, LEAST_RUN_S))
            worth = verdict.chunks
            self._begin_ahead(there[:worth], run.timeout_s + LEAST_RUN_S)
            figures.add("found_chunks", worth)
            figures.add("declined_chunks", len(there) - worth)
            figures.add("missed_chunks", len(names) - len(there))
            return tuple(
                tuple(
                    FoundPiece(record.region, record.size_bytes, self._said(record.holder))
                    for record in chunk
                )
                for chunk in there[:worth]
            )
        figures.add("late")
        return ()

    async def fetch(self, name: bytes, region: Region, timeout_s: float) -> Fetching:
        """A piece that was found, its first blocks there already. Raises BlockMissing."""
        choice = self._found.get((name, region))
        if choice is None:
            known = await self._known([name], region)
            same = tuple(record for record in known.get(name, ()) if record.region == region)
            choice = _Choice(same, Run(FETCH_S))
        now = trio.current_time()
        for record in choice.records:
            deadline = now + min(timeout_s, FETCH_S)
            if record.holder != self._node.peer:
                deadline = min(deadline, choice.run.deadline(now))
            if trio.current_time() >= deadline or self._avoided(record.holder):
                continue
            said = self._said(record.holder)
            fetching = Fetching(record, said, deadline, self._blocks, self._came, self._failed)
            try:
                await fetching.begin()
            except EdgeError as error:
                log.info("a KV piece could not be fetched", holder=record.holder, error=str(error))
                continue
            return fetching
        raise BlockMissing("nobody has this piece any more")

    async def store(self, name: bytes, region: Region) -> Storing | None:
        """Takes a piece in; None where nothing is kept."""
        if self._node.store is None or self._left_bytes <= 0:
            self._node.figures.add("refused_stores")
            return None
        own = await self._node.own_records(self._scope, [name])

        is_there = kept = any(record.region == region for record in own.get(name, ()))

        async def keep(cids: tuple[Cid, ...], size_bytes: int) -> None:
            nonlocal kept
            await self._own(name, region, cids, size_bytes)
            self._node.figures.add("bytes_stored", size_bytes)
            kept = True

        def closed() -> None:
            self._storing -= 1
            self._stored_at = trio.current_time()
            if not kept:
                self._node.figures.add("refused_stores")

        self._storing += 1
        return Storing(self._node.store, self._take, keep, closed, is_there=is_there)

    async def report(self, name: bytes, region: Region, holder: str, outcome: Outcome, tokens: int) -> None:
        """Notes what became of a piece: its holder is avoided where it was not what it should be."""
        record, seconds = self._fetched.pop((name, region), (None, 0.0))
        blocks = self._proven(name, region)
        if record is None or self._said(record.holder) != holder:
            return  # nothing of the kind came through here
        figures = self._node.figures
        figures.add("seconds_fetching", seconds)
        if outcome is Outcome.USED:
            figures.add("used_pieces")
            figures.add("used_tokens", tokens)
            if self._kv.prefill_tok_s:
                figures.add("seconds_saved", tokens / self._kv.prefill_tok_s)
            if record.holder != self._node.peer and await self._keep(record, blocks):
                await self._own(record.name, record.region, record.cids, record.size_bytes)
        elif outcome is Outcome.LATE:
            figures.add("late")
        else:
            figures.add("verify_failures")
            log.warning("a KV piece was not what it should be", holder=record.holder, outcome=outcome.value)
            self._avoid(record.holder, DISTRUST_S)
            self._found.pop((name, region), None)
            await self._node.index.forget(record)
        self._announcer.say(Use(name, region, record.holder, outcome.value, tokens, record.size_bytes))

    async def settle(self) -> None:
        """Returns once the cell has stored nothing for a moment and said what became of what it fetched, and the tracker was
        told all that there is to tell."""
        begun = self._stored_at = trio.current_time()
        while self._storing or trio.current_time() < self._stored_at + QUIET_S:
            await trio.sleep(QUIET_S / 10)
        while self._fetched and trio.current_time() < begun + REPORTS_S:
            await trio.sleep(QUIET_S / 10)
        await self._announcer.settle()

    async def _known(self, names: Sequence[bytes], region: Region) -> Mapping[bytes, tuple[Record, ...]]:
        """Own records first; what these do not cover is asked of the others."""
        own = await self._node.own_records(self._scope, names)
        regions = {name: [record.region for record in records] for name, records in own.items()}
        missing = [name for name in names if cover(region, regions.get(name, [])) is None]
        if not missing:
            return own
        known = dict(own)
        for answer in await self._ask(missing, region):
            for holder in answer.holders:
                self._addresses[holder.peer] = holder.addresses
            for record in answer.records:
                if record.holder != self._node.peer:
                    known[record.name] = (*known.get(record.name, ()), record)
        return known

    async def _ask(self, names: Sequence[bytes], region: Region) -> list[Known]:
        """What the tracker knows, and, in a scope of several requesters, those who said that they have something of it."""
        whom = [self._tracker, *self._node.providers.of(self._scope)]
        answers: list[Known] = []

        async def ask(peer: PeerAddress) -> None:
            try:
                answers.append(
                    await ask_find(self._node.network, peer, self._scope, names, region, timeout_s=TRACKER_S)
                )
            except NetworkError as error:
                log.info("a peer did not say which KV pieces it knows of", peer=peer.peer, error=str(error))
                self._avoid(peer.peer, UNREACHABLE_S)

        async with trio.open_nursery() as nursery:
            for peer in {peer.peer: peer for peer in whom}.values():
                if peer.peer != self._node.peer and not self._avoided(peer.peer):
                    nursery.start_soon(ask, peer)
        return answers

    def _covered(
        self, names: Sequence[bytes], region: Region, known: Mapping[bytes, tuple[Record, ...]], run: Run
    ) -> list[tuple[Record, ...]]:
        """For each of the first chunks the records of pieces that make up `region`, each from the best holder."""
        there = []
        for name in names:
            choices: dict[Region, list[Record]] = {}
            for record in known.get(name, ()):
                if not self._avoided(record.holder) and record.size_bytes <= MAX_PIECE_BYTES:
                    choices.setdefault(record.region, []).append(record)
            used = cover(region, list(choices))
            if used is None:
                break
            best = []
            for piece in used:
                ordered = tuple(sorted(choices[piece], key=self._node.cost_s))
                _remember(self._found, (name, piece), _Choice(ordered, run))
                best.append(ordered[0])
            there.append(tuple(best))
        return there

    async def _blocks(self, record: Record, cids: Sequence[Cid], timeout_s: float) -> list[bytes]:
        """Some blocks of a piece, which match their CIDs. Raises BlockMissing, NetworkError."""
        if record.holder == self._node.peer:
            blocks = await self._node.own_blocks(record, cids)
            self._node.figures.add("bytes_local", sum(map(len, blocks)))
            return blocks
        came_ahead = await self._ahead.take(record.holder, cids)
        if came_ahead is not None:
            blocks = came_ahead
        else:
            whom = PeerAddress(record.holder, self._addresses.get(record.holder, ()))
            blocks = await self._node.fetcher.fetch(cids, [whom], timeout_s=timeout_s)
            self._node.figures.add("bytes_in", sum(map(len, blocks)))
        self._remember_unproven((record.name, record.region), blocks)
        return blocks

    def _begin_ahead(self, chunks: Sequence[Sequence[Record]], timeout_s: float) -> None:
        """Has the blocks of other holders come, as many as there is room for."""
        if self._tasks is None:
            return
        wanted: dict[str, list[Record]] = {}
        size_bytes = 0
        for record in (record for chunk in chunks for record in chunk if record.holder != self._node.peer):
            size_bytes += record.size_bytes
            if not self._ahead.fits(size_bytes):
                break
            wanted.setdefault(record.holder, []).append(record)
        for holder, records in wanted.items():
            cids = [cid for record in records for cid in record.cids]
            size = sum(record.size_bytes for record in records)
            self._ahead.begin(self._tasks, holder, cids, size, timeout_s)

    async def _fetch_ahead(self, holder: str, cids: Sequence[Cid], timeout_s: float, came: Came) -> None:
        whom = PeerAddress(holder, self._addresses.get(holder, ()))

        def counted(cid: Cid, block: bytes) -> None:
            self._node.figures.add("bytes_in", len(block))
            self._heard_at[holder] = trio.current_time()
            came(cid, block)

        await self._node.fetcher.fetch(cids, [whom], timeout_s=timeout_s, came=counted)

    async def measure(self, timeout_s: float) -> None:
        """Fetches a little of each holder that nothing is known of: when a lease begins, while the engine still loads, and
        when a question is to come whose pieces somebody else has just computed.

        Otherwise the prompt would have to try, and the gate lets it risk next to nothing. However often it is asked for, one is
        made at a time, and few.
        """
        with trio.move_on_after(timeout_s):
            async with self._measuring:
                if trio.current_time() >= self._measured_at + MEASURED_ANEW_S:
                    self._measured_at = trio.current_time()
                    await self._measure()

    async def _measure(self) -> None:
        try:
            known = await ask_find(
                self._node.network, self._tracker, self._scope, [], None, timeout_s=TRACKER_S
            )
        except NetworkError as error:
            log.info("a tracker does not say who holds KV pieces", error=str(error))
            return
        for holder in known.holders:
            self._addresses[holder.peer] = holder.addresses
        async with trio.open_nursery() as nursery:
            for record in known.records[:MAX_SAMPLED]:
                if self._node.cost_s(record) == math.inf and not self._avoided(record.holder):
                    nursery.start_soon(self._sample, record)

    async def _sample(self, record: Record) -> None:
        try:
            await self._blocks(record, record.cids[: SAMPLE_BYTES // MAX_BLOCK_BYTES], SAMPLE_S)
        except EdgeError as error:
            log.info("a holder of KV pieces does not deliver", holder=record.holder, error=str(error))
            await self._failed(record, error)

    def _remember_unproven(self, piece: _Key, blocks: list[bytes]) -> None:
        if self._node.store is None:
            return
        self._unproven.setdefault(piece, []).extend(blocks)
        self._unproven.move_to_end(piece)
        self._unproven_bytes += sum(map(len, blocks))
        while self._unproven_bytes > MAX_UNPROVEN_BYTES:
            self._proven(*next(iter(self._unproven)))

    def _proven(self, name: bytes, region: Region) -> list[bytes]:
        """Takes the blocks of a piece out of those that nothing is known of."""
        blocks = self._unproven.pop((name, region), [])
        self._unproven_bytes -= sum(map(len, blocks))
        return blocks

    async def _keep(self, record: Record, blocks: list[bytes]) -> bool:
        """Whether this node has the whole piece now."""
        size_bytes = sum(map(len, blocks))
        if self._node.store is not None and size_bytes == record.size_bytes and self._take(size_bytes):
            try:
                await self._node.store.put(blocks)
            except (EdgeError, OSError) as error:
                log.info("fetched KV blocks are not kept", error=str(error))
        return await self._node.has(record)

    def _came(self, record: Record, seconds: float) -> None:
        _remember(self._fetched, (record.name, record.region), (record, seconds))

    async def _failed(self, record: Record, error: EdgeError) -> None:
        self._node.figures.add("fetch_failures")
        if not isinstance(error, BlockMissing) or isinstance(error, BlocksNotSent):
            # One that still sends is slower than was thought, which the gate knows now.
            if trio.current_time() > self._heard_at.get(record.holder, -math.inf) + STILL_SENDS_S:
                self._avoid(record.holder, UNREACHABLE_S)
            return
        # An honest holder whose disk was needed for something else: the record goes, the holder stays.
        self._found.pop((record.name, record.region), None)
        await self._node.index.forget(record)
        self._announcer.say(Use(record.name, record.region, record.holder, GONE, 0, 0))

    def _take(self, size_bytes: int) -> bool:
        """Whether so much more of this lease may be kept; counts it."""
        if size_bytes > self._left_bytes:
            return False
        self._left_bytes -= size_bytes
        return True

    async def _own(self, name: bytes, region: Region, cids: tuple[Cid, ...], size_bytes: int) -> None:
        """This node holds a piece from now on, and says so."""
        record = Record(
            scope=self._scope,
            name=name,
            region=region,
            cids=cids,
            size_bytes=size_bytes,
            holder=self._node.peer,
            expires_at=self._node.now() + RECORD_LIFETIME_S,
        )
        await self._node.index.put([record])
        self._have(record)

    def _have(self, record: Record) -> None:
        if self._kv.scope != "session":
            self._node.providers.have(self._scope)
        self._announcer.say(record)

    async def _tell(self, items: Sequence[Record | Use]) -> None:
        records = [item for item in items if isinstance(item, Record)]
        uses = [item for item in items if isinstance(item, Use)]
        batch = seal_batch(records, self._node.network.identity) if records else b""
        addresses = self._node.addresses
        await announce(self._node.network, self._tracker, self._scope, batch, addresses, uses)
        self._node.figures.add("announced", len(records))

    def _lost(self, count: int) -> None:
        self._node.figures.add("lost_announcements", count)

    def _said(self, holder: str) -> str:
        return "" if holder == self._node.peer else holder

    def _avoid(self, holder: str, seconds: float) -> None:
        self._node.distrust.avoid(self._scope, holder, trio.current_time() + seconds)

    def _avoided(self, holder: str) -> bool:
        return self._node.distrust.avoided(self._scope, holder, trio.current_time())


def _remember(table: OrderedDict[_Key, _V], key: _Key, value: _V) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > MAX_REMEMBERED:
        table.popitem(last=False)
