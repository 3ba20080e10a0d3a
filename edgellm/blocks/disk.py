"""The embedded block store: one file for each block, least recently used out first.

    blocks/ab/ab12...   a block, under its SHA-256 in hex
    new/PID-NUMBER      one that is being written
    index.sqlite        size, last use and pin of each; made anew from the files where it is missing or damaged

Several processes may have the same directory open. A block is whole before it gets its name, so a killed process leaves no
wrong one; after a power cut, files may be missing or torn: what does not match its CID is removed when it is read.
"""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
import structlog
import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.store import MAX_BLOCK_BYTES, StoreStat
from edgellm.errors import BlockMissing, BlockStoreFull, UsageError

log = structlog.get_logger(__name__)

_THREADS = 4
_BUSY_S = 10.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS blocks
        (digest BLOB PRIMARY KEY, size INTEGER NOT NULL, used REAL NOT NULL, pinned INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS by_use ON blocks (pinned, used);
"""

T = TypeVar("T")


@asynccontextmanager
async def open_disk_store(directory: Path, quota_bytes: int) -> AsyncIterator[DiskStore]:
    """The store in `directory`, which is made if need be. A smaller quota than before takes effect with the next `put`.

    Raises UsageError where the directory cannot be used.
    """
    store = await trio.to_thread.run_sync(DiskStore, directory, quota_bytes)
    try:
        yield store
    finally:
        store.close()


class DiskStore:
    """Made by `open_disk_store` (`edgellm.blocks.store.BlockStore`)."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        self._blocks, self._new = directory / "blocks", directory / "new"
        self._quota_bytes = quota_bytes
        self._numbers = itertools.count()
        self._threads = trio.CapacityLimiter(_THREADS)
        self._lock = threading.Lock()
        try:
            for place in (directory, self._blocks, self._new):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep_new()
            self._database = self._open_database(directory / "index.sqlite")
        except OSError as error:
            raise UsageError(
                f"cannot keep blocks in {directory}: {error.strerror}",
                remedy="choose a directory of your own",
            ) from error

    async def put(self, blocks: Sequence[bytes]) -> tuple[Cid, ...]:
        """As in `BlockStore`; when it returns, the end of this process cannot lose them."""
        if too_large := [len(block) for block in blocks if len(block) > MAX_BLOCK_BYTES]:
            raise UsageError(f"a block of {too_large[0]} bytes; it has {MAX_BLOCK_BYTES} at most")
        return await self._in_thread(lambda: self._put(blocks))

    async def get(self, cid: Cid) -> bytes:
        """As in `BlockStore`."""
        return await self._in_thread(lambda: self._get(cid))

    async def has(self, cid: Cid) -> bool:
        """As in `BlockStore`."""
        return await self._in_thread(self._path(cid).exists)

    async def pin(self, cid: Cid) -> None:
        """As in `BlockStore`."""

        def pin() -> None:
            with self._writing() as database:
                changed = database.execute("UPDATE blocks SET pinned = 1 WHERE digest = ?", (cid.digest,))
                if not changed.rowcount or not self._path(cid).exists():
                    raise BlockMissing(f"block {cid} is not here")

        await self._in_thread(pin)

    async def unpin(self, cid: Cid) -> None:
        """As in `BlockStore`."""

        def unpin() -> None:
            with self._writing() as database:
                database.execute("UPDATE blocks SET pinned = 0 WHERE digest = ?", (cid.digest,))

        await self._in_thread(unpin)

    async def stat(self) -> StoreStat:
        """As in `BlockStore`."""

        def stat() -> StoreStat:
            with self._lock:
                count, used, pinned = self._database.execute(
                    "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(size * pinned), 0) FROM blocks"
                ).fetchone()
            return StoreStat(count, used, pinned, self._quota_bytes)

        return await self._in_thread(stat)

    async def gc(self) -> int:
        """As in `BlockStore`."""

        def gc() -> int:
            with self._writing() as database:
                return self._evict(database, None)

        return await self._in_thread(gc)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _put(self, blocks: Sequence[bytes]) -> tuple[Cid, ...]:
        cids = tuple(Cid.of(block) for block in blocks)
        missing = {
            cid: block for cid, block in zip(cids, blocks, strict=True) if not self._path(cid).exists()
        }
        needed = sum(map(len, missing.values()))
        if needed:
            self._make_room(needed)
        written: list[Cid] = []
        try:
            for cid, block in missing.items():
                self._write(cid, block)
                written.append(cid)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            for cid in written:
                self._path(cid).unlink(missing_ok=True)
            raise BlockStoreFull(
                f"the disk of {self._blocks.parent} is full", remedy="make room, or lend a smaller --kv-quota"
            ) from error
        now = time.time()
        with self._writing() as database:
            database.executemany(
                "INSERT INTO blocks (digest, size, used) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET used = excluded.used",
                [(cid.digest, len(block), now) for cid, block in zip(cids, blocks, strict=True)],
            )
        return cids

    def _make_room(self, needed: int) -> None:
        with self._writing() as database:
            used, pinned = database.execute(
                "SELECT coalesce(sum(size), 0), coalesce(sum(size * pinned), 0) FROM blocks"
            ).fetchone()
            if pinned + needed > self._quota_bytes:
                raise BlockStoreFull(
                    f"{needed} bytes of blocks do not fit into a quota of {self._quota_bytes}, {pinned} of it pinned",
                    remedy="raise --kv-quota, or unpin blocks with `edgellm kv unpin`",
                )
            if used + needed > self._quota_bytes:
                self._evict(database, used + needed - self._quota_bytes)

    def _evict(self, database: sqlite3.Connection, bytes_wanted: int | None) -> int:
        """Removes the least recently used, all where `bytes_wanted` is None; the bytes that were freed."""
        freed = 0
        chosen: list[bytes] = []
        for digest, size in database.execute(
            "SELECT digest, size FROM blocks WHERE pinned = 0 ORDER BY used"
        ):
            if bytes_wanted is not None and freed >= bytes_wanted:
                break
            chosen.append(digest)
            freed += size
        for digest in chosen:
            self._path(Cid(digest)).unlink(missing_ok=True)
        database.executemany("DELETE FROM blocks WHERE digest = ?", [(digest,) for digest in chosen])
        return freed

    def _write(self, cid: Cid, block: bytes) -> None:
        new = self._new / f"{os.getpid()}-{threading.get_ident()}-{next(self._numbers)}"
        path = self._path(cid)
        try:
            new.write_bytes(block)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            new.replace(path)
        except OSError:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise

    def _get(self, cid: Cid) -> bytes:
        path = self._path(cid)
        try:
            block = path.read_bytes()
        except FileNotFoundError:
            self._forget(cid)
            raise BlockMissing(f"block {cid} is not here") from None
        if not cid.matches(block):
            log.warning("a damaged block was removed", cid=str(cid))
            path.unlink(missing_ok=True)
            self._forget(cid)
            raise BlockMissing(f"block {cid} was damaged on disk")
        with self._writing() as database:
            database.execute("UPDATE blocks SET used = ? WHERE digest = ?", (time.time(), cid.digest))
        return block

    def _forget(self, cid: Cid) -> None:
        with self._writing() as database:
            database.execute("DELETE FROM blocks WHERE digest = ?", (cid.digest,))

    def _path(self, cid: Cid) -> Path:
        name = cid.digest.hex()
        return self._blocks / name[:2] / name

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction of this process alone, which other processes wait for."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.rollback()
                raise
            self._database.commit()

    def _sweep_new(self) -> None:
        """Removes what writers that are gone have left."""
        for path in self._new.iterdir():
            pid = path.name.partition("-")[0]
            if not pid.isdigit() or not psutil.pid_exists(int(pid)) or int(pid) == os.getpid():
                path.unlink(missing_ok=True)

    def _open_database(self, path: Path) -> sqlite3.Connection:
        try:
            database = self._connected(path)
        except sqlite3.DatabaseError:
            log.warning("the index of blocks is damaged and is made anew", path=str(path))
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                path.with_name(name).unlink(missing_ok=True)
            database = self._connected(path)
        there = {
            bytes.fromhex(entry.name): entry.stat()
            for folder in os.scandir(self._blocks)
            for entry in os.scandir(folder.path)
            if len(entry.name) == 64
        }
        known = {digest for (digest,) in database.execute("SELECT digest FROM blocks")}
        database.execute("BEGIN IMMEDIATE")
        database.executemany(
            "DELETE FROM blocks WHERE digest = ?", [(gone,) for gone in known - there.keys()]
        )
        database.executemany(
            "INSERT OR IGNORE INTO blocks (digest, size, used) VALUES (?, ?, ?)",
            [(digest, stat.st_size, stat.st_mtime) for digest, stat in there.items() if digest not in known],
        )
        database.commit()
        return database

    @staticmethod
    def _connected(path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            # After a power cut the files tell what is there.
            database.execute("PRAGMA synchronous = OFF")
            database.executescript(_SCHEMA)
        except BaseException:
            database.close()
            raise
        return database
