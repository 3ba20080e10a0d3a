"""The embedded block store: files in a directory, a quota, the least recently used out first.

    ab/cdef...      a block, under its SHA-256 in hex (`edgellm.blocks.files`)
    writing/        what is being written
    ledger.sqlite   size, last use and pin of each (`edgellm.blocks.ledger`); made anew where it is missing or damaged

Several processes of a user may have the same directory open; they should bring the same quota, because each keeps to its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.files import BlockFiles
from edgellm.blocks.ledger import STALE_RESERVATION_S, Changes, Ledger, told
from edgellm.blocks.store import MAX_BLOCK_BYTES, StoreStat
from edgellm.errors import BlockMissing, BlockStoreFull, EdgeError, UsageError

log = structlog.get_logger(__name__)

_OPERATIONS = 8
"""At once; more wait."""
_PUT_THREADS = 4
"""That hash and write the blocks of puts. Most of their time is the disk's: 4 were as quick as 8 on 2 cores."""
_TOUCH_EVERY_S = 1.0
"""How late other processes may learn what was used here; writing it down for each `get` would make them writers."""
_GC_ROWS = 512
"""Removed between two moments in which others get a turn."""
_ATTEMPTS = 8

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """What `DiskStore.entries` tells of a block."""

    cid: Cid
    size_bytes: int
    used_s: float
    """When it was last put or got, in seconds since the epoch."""
    pinned: bool


@asynccontextmanager
async def open_disk_store(directory: Path, quota_bytes: int | None) -> AsyncIterator[DiskStore]:
    """The store in `directory`, which is made if need be.

    A smaller quota than before takes effect with the next `put`; None: the quota that was brought last. Raises EdgeError
    where the directory cannot be used, BlockStoreFull where its disk is full.
    """
    store = DiskStore(directory, quota_bytes)
    try:
        await trio.to_thread.run_sync(store._open)
        yield store
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(store._close)


class DiskStore:
    """Made by `open_disk_store` (`edgellm.blocks.store.BlockStore`).

    What a thread does for a task that is cancelled, it finishes. Errors of all methods besides those of `BlockStore`:
    EdgeError when the disk fails or another process keeps the ledger for too long.
    """

    def __init__(self, directory: Path, quota_bytes: int | None) -> None:
        self.directory = directory
        self._quota_bytes = quota_bytes
        self._files = BlockFiles(directory)
        self._ledger = Ledger(self._files)
        self._operations = trio.CapacityLimiter(_OPERATIONS)
        self._pool = ThreadPoolExecutor(_PUT_THREADS, thread_name_prefix="blocks")
        self._touched: dict[bytes, float] = {}
        self._touched_lock = threading.Lock()
        self._touches_written = 0.0

    async def put(self, blocks: Sequence[bytes]) -> tuple[Cid, ...]:
        """As in `BlockStore`: all of the blocks or none. Neither `kill -9` nor power loss takes away what was put."""
        for block in blocks:
            if len(block) > MAX_BLOCK_BYTES:
                raise UsageError(f"a block of {len(block)} bytes; it has {MAX_BLOCK_BYTES} at most")
        return await self._in_thread(lambda: self._put(blocks))

    async def get(self, cid: Cid) -> bytes:
        """As in `BlockStore`."""
        return await self._in_thread(lambda: self._get(cid))

    async def has(self, cid: Cid) -> bool:
        """As in `BlockStore`, but a damaged block counts as being here until somebody gets it."""
        return await self._in_thread(lambda: self._files.exists(cid.digest))

    async def pin(self, cid: Cid) -> None:
        """As in `BlockStore`."""

        def pin(changes: Changes) -> None:
            if not self._files.mark(cid.digest, pinned=True):
                raise BlockMissing(f"block {cid} is not here")
            changes.set_pinned(cid.digest, True)

        await self._in_thread(lambda: self._ledger.run(pin))

    async def unpin(self, cid: Cid) -> None:
        """As in `BlockStore`."""

        def unpin(changes: Changes) -> None:
            self._files.mark(cid.digest, pinned=False)
            changes.set_pinned(cid.digest, False)

        await self._in_thread(lambda: self._ledger.run(unpin))

    async def stat(self) -> StoreStat:
        """As in `BlockStore`; room that is kept for blocks on their way counts as used."""

        def stat(changes: Changes) -> StoreStat:
            totals = changes.totals()
            quota = totals.quota_bytes if self._quota_bytes is None else self._quota_bytes
            return StoreStat(changes.stored_blocks(), totals.used_bytes, totals.pinned_bytes, quota)

        return await self._in_thread(lambda: self._ledger.run(stat))

    async def gc(self) -> int:
        """As in `BlockStore`."""
        return await self._in_thread(self._gc)

    async def entries(self) -> tuple[StoredBlock, ...]:
        """All blocks, the least recently used first."""

        def entries(changes: Changes) -> tuple[StoredBlock, ...]:
            self._write_touches(changes)
            return tuple(
                StoredBlock(Cid(row.digest), row.size_bytes, row.used_s, row.pinned) for row in changes.rows()
            )

        return await self._in_thread(lambda: self._ledger.run(entries))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._operations)

    def _open(self) -> None:
        def begin(changes: Changes) -> None:
            if self._quota_bytes is not None:
                changes.set_quota(self._quota_bytes)
            self._drop_stale(changes)

        self._ledger.run(begin)

    def _close(self) -> None:
        self._pool.shutdown()
        self._tell_touches(0.0)
        self._ledger.close()
        self._files.close()

    def _put(self, blocks: Sequence[bytes]) -> tuple[Cid, ...]:
        if not blocks:
            return ()
        if self._quota_bytes == 0:
            raise BlockStoreFull(
                "the block store keeps nothing: its quota is 0", remedy="give it room with --kv-quota"
            )
        cids = tuple(self._for_each(Cid.of, blocks))
        content = {cid.digest: block for cid, block in zip(cids, blocks, strict=True)}
        here = self._for_each(lambda digest: self._files.read(digest) is not None, content)
        missing = [digest for digest, there in zip(content, here, strict=True) if not there]
        temporaries: dict[bytes, Path] = {}
        try:
            with told(self.directory):
                for _ in range(_ATTEMPTS):
                    missing = self._reserve(content, missing)
                    unwritten = [digest for digest in missing if digest not in temporaries]
                    self._write(content, unwritten, temporaries)
                    if self._publish(missing, temporaries):
                        break
                else:
                    raise EdgeError("other processes took the room for new blocks again and again")
                self._files.synchronise(content)
        except BaseException:
            self._give_back(missing)
            raise
        finally:
            for temporary in temporaries.values():
                temporary.unlink(missing_ok=True)
        return cids

    def _for_each(self, work: Callable[[U], T], items: Iterable[U]) -> list[T]:
        """In parallel where there is something to gain."""
        several = list(items)
        if len(several) == 1:
            return [work(several[0])]
        return list(self._pool.map(work, several))

    def _reserve(self, content: dict[bytes, bytes], missing: list[bytes]) -> list[bytes]:
        """Makes room for what is not here; which blocks that are. They count as used now, like those that are here."""

        def reserve(changes: Changes) -> list[bytes]:
            now = time.time()
            self._write_touches(changes)
            gone = [digest for digest in content if digest in missing or not self._files.exists(digest)]
            known = {digest for digest in content if changes.row(digest) is not None}
            self._make_room(
                changes, sum(len(block) for digest, block in content.items() if digest not in known), content
            )
            for digest, block in content.items():
                changes.add(digest, len(block), now, stored=digest not in gone)
            return gone

        return self._ledger.run(reserve)

    def _make_room(self, changes: Changes, needed: int, wanted: dict[bytes, bytes]) -> None:
        self._drop_stale(changes)
        totals = changes.totals()
        quota = totals.quota_bytes if self._quota_bytes is None else self._quota_bytes
        over = totals.used_bytes + needed - quota
        if over <= 0:
            return
        victims = []
        for row in changes.unpinned():
            if over <= 0:
                break
            if row.digest not in wanted:
                victims.append(row.digest)
                over -= row.size_bytes
        if over > 0:
            raise BlockStoreFull(
                f"{needed} bytes of blocks do not fit into a quota of {quota}, {totals.pinned_bytes} of it pinned",
                remedy="raise --kv-quota, or unpin blocks with `edgellm kv unpin`",
            )
        self._remove(changes, victims)

    def _write(
        self, content: dict[bytes, bytes], digests: list[bytes], temporaries: dict[bytes, Path]
    ) -> None:
        """Waits for every thread also when one fails, so that each temporary file is known."""

        def write(digest: bytes) -> OSError | None:
            try:
                temporaries[digest] = self._files.write(content[digest])
            except OSError as error:
                return error
            return None

        failures = [error for error in self._for_each(write, digests) if error is not None] if digests else []
        if failures:
            raise failures[0]

    def _publish(self, digests: list[bytes], temporaries: dict[bytes, Path]) -> bool:
        """Whether the room was still there: other processes may have evicted what was only on its way."""
        if not digests:
            return True

        def publish(changes: Changes) -> bool:
            rows = [changes.row(digest) for digest in digests]
            if any(row is None for row in rows):
                return False
            for row in rows:
                if row is not None and row.digest in temporaries:
                    self._files.publish(temporaries.pop(row.digest), row.digest, pinned=row.pinned)
            changes.set_stored(digests)
            return True

        return self._ledger.run(publish)

    def _give_back(self, digests: list[bytes]) -> None:
        """The room of blocks that were not written after all."""

        def give_back(changes: Changes) -> None:
            changes.drop([digest for digest in digests if not self._files.exists(digest)])

        try:
            self._ledger.run(give_back)
        except EdgeError as error:
            log.debug("room for blocks is given back later", reason=str(error))

    def _drop_stale(self, changes: Changes) -> None:
        stale = [row.digest for row in changes.stale(time.time() - STALE_RESERVATION_S)]
        if stale:
            self._remove(changes, stale)

    def _remove(self, changes: Changes, digests: list[bytes]) -> None:
        for digest in digests:
            self._files.remove(digest)
        changes.drop(digests)

    def _get(self, cid: Cid) -> bytes:
        block = self._files.read(cid.digest)
        if block is None:
            if self._files.exists(cid.digest):
                self._ledger.run(lambda changes: self._remove_damaged(changes, cid))
                raise BlockMissing(f"block {cid} was damaged on the disk, and is removed")
            self._forget(cid)
            raise BlockMissing(f"block {cid} is not here")
        with self._touched_lock:
            self._touched[cid.digest] = time.time()
        self._tell_touches(_TOUCH_EVERY_S)
        return block

    def _forget(self, cid: Cid) -> None:
        """Gives back the room of a block whose file somebody else has removed."""

        def forget(changes: Changes) -> None:
            row = changes.row(cid.digest)
            if row is not None and row.stored and not self._files.exists(cid.digest):
                changes.drop([cid.digest])

        try:
            self._ledger.run(forget, wait_s=_TOUCH_EVERY_S)
        except EdgeError as error:
            log.debug("a block that is gone still counts", reason=str(error))

    def _remove_damaged(self, changes: Changes, cid: Cid) -> None:
        # Once more, now that nobody can put the right one in its place meanwhile.
        if self._files.read(cid.digest) is None:
            log.warning("a damaged block is removed", cid=str(cid))
            self._remove(changes, [cid.digest])

    def _tell_touches(self, every_s: float) -> None:
        with self._touched_lock:
            now = time.monotonic()
            if not self._touched or now - self._touches_written < every_s:
                return
            self._touches_written = now
        try:
            self._ledger.run(self._write_touches, wait_s=every_s)
        except EdgeError as error:
            log.debug("the last uses of some blocks are not noted", reason=str(error))

    def _write_touches(self, changes: Changes) -> None:
        with self._touched_lock:
            touched, self._touched = self._touched, {}
        changes.touch(touched)

    def _gc(self) -> int:
        def some(changes: Changes) -> tuple[int, bool]:
            rows = [row for row, _ in zip(changes.unpinned(), range(_GC_ROWS), strict=False)]
            self._remove(changes, [row.digest for row in rows])
            return sum(row.size_bytes for row in rows if row.stored), len(rows) == _GC_ROWS

        self._ledger.run(lambda changes: changes.agree(self._files))
        freed, more = 0, True
        while more:
            count, more = self._ledger.run(some)
            freed += count
        return freed
