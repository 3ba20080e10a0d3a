"""What the block files of a store take, when each was last used and which are pinned: SQLite, shared by processes.

Every change happens in a transaction under a lock on a file, so that rows and files change together; the lock ends with its
process. Every file has a row: rows are made before files, and files are removed before rows. What a killed process leaves is
therefore a row too many, which counts as used until it is dropped. SQLite does not synchronise each transaction, so power
loss can take rows away; whoever opens the store makes them agree with the files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from edgellm.blocks.files import BlockFiles
from edgellm.errors import BlockStoreFull, EdgeError

log = structlog.get_logger(__name__)

BUSY_S = 10.0
"""How long a change waits for other threads and processes; a frozen process must not freeze the others."""
STALE_RESERVATION_S = 600.0
"""A writer that is slower than this loses the room that was kept for it, and asks for it again."""

_POLL_S = 0.002
_NAME = "ledger.sqlite"
_TABLES = """
CREATE TABLE blocks (
    digest BLOB PRIMARY KEY, size_bytes INTEGER NOT NULL, used_s REAL NOT NULL, pinned INTEGER NOT NULL, stored INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX by_use ON blocks (pinned, used_s, size_bytes);
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO facts VALUES ('used_bytes', 0), ('pinned_bytes', 0), ('quota_bytes', 0);
CREATE TRIGGER added AFTER INSERT ON blocks BEGIN
    UPDATE facts SET value = value + NEW.size_bytes WHERE name = 'used_bytes';
    UPDATE facts SET value = value + NEW.size_bytes * NEW.pinned WHERE name = 'pinned_bytes';
END;
CREATE TRIGGER removed AFTER DELETE ON blocks BEGIN
    UPDATE facts SET value = value - OLD.size_bytes WHERE name = 'used_bytes';
    UPDATE facts SET value = value - OLD.size_bytes * OLD.pinned WHERE name = 'pinned_bytes';
END;
CREATE TRIGGER repinned AFTER UPDATE OF pinned ON blocks WHEN NEW.pinned != OLD.pinned BEGIN
    UPDATE facts SET value = value + NEW.size_bytes * (NEW.pinned - OLD.pinned) WHERE name = 'pinned_bytes';
END;
"""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of a block."""

    digest: bytes
    size_bytes: int
    used_s: float
    """Seconds since the epoch."""
    pinned: bool
    stored: bool
    """False: room is kept for it, and its file is on its way."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Room that is kept for blocks on their way is part of `used_bytes`."""

    used_bytes: int
    pinned_bytes: int
    quota_bytes: int
    """Of whoever opened the store last and brought one."""


class Changes:
    """One transaction: what can be read and changed in it."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def row(self, digest: bytes) -> Row | None:
        return next(self._rows("WHERE digest = ?", digest), None)

    def rows(self) -> list[Row]:
        """Of all blocks, the least recently used first."""
        return list(self._rows("WHERE stored ORDER BY used_s"))

    def unpinned(self) -> Iterator[Row]:
        """The least recently used first; not to be changed while this goes on."""
        return self._rows("WHERE pinned = 0 ORDER BY used_s")

    def stale(self, before_s: float) -> list[Row]:
        """Room that was kept for blocks since before then."""
        return list(self._rows("WHERE NOT stored AND used_s < ?", before_s))

    def totals(self) -> Totals:
        facts = dict(self._database.execute("SELECT name, value FROM facts"))
        return Totals(facts["used_bytes"], facts["pinned_bytes"], facts["quota_bytes"])

    def stored_blocks(self) -> int:
        (count,) = self._database.execute("SELECT count(*) FROM blocks WHERE stored").fetchone()
        return int(count)

    def add(
        self, digest: bytes, size_bytes: int, used_s: float, *, pinned: bool = False, stored: bool
    ) -> None:
        """What is known of it already stays, but for the time."""
        self._database.execute(
            "INSERT INTO blocks VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET used_s = excluded.used_s, stored = max(stored, excluded.stored)",
            (digest, size_bytes, used_s, pinned, stored),
        )

    def set_stored(self, digests: Iterable[bytes]) -> None:
        self._database.executemany("UPDATE blocks SET stored = 1 WHERE digest = ?", _each(digests))

    def touch(self, used_s: Mapping[bytes, float]) -> None:
        """Last uses of blocks; those that are gone stay gone."""
        self._database.executemany(
            "UPDATE blocks SET used_s = max(used_s, ?) WHERE digest = ?",
            [(used, digest) for digest, used in used_s.items()],
        )

    def set_pinned(self, digest: bytes, pinned: bool) -> None:
        self._database.execute("UPDATE blocks SET pinned = ? WHERE digest = ?", (pinned, digest))

    def drop(self, digests: Iterable[bytes]) -> None:
        self._database.executemany("DELETE FROM blocks WHERE digest = ?", _each(digests))

    def set_quota(self, quota_bytes: int) -> None:
        self._database.execute("UPDATE facts SET value = ? WHERE name = 'quota_bytes'", (quota_bytes,))

    def agree(self, files: BlockFiles) -> None:
        """Rows for all files, and none without, but for those whose files are on their way."""
        known = {row.digest: row for row in self._rows("")}
        there: set[bytes] = set()
        for facts in files.scan():
            there.add(facts.digest)
            row = known.get(facts.digest)
            if row is None or row.size_bytes != facts.size_bytes:
                self.drop([facts.digest])
                used_s = row.used_s if row else facts.written_s
                self.add(facts.digest, facts.size_bytes, used_s, pinned=facts.pinned, stored=True)
                continue
            if row.pinned != facts.pinned:
                self.set_pinned(facts.digest, facts.pinned)
            if not row.stored:
                self.set_stored([facts.digest])
        self.drop([digest for digest, row in known.items() if row.stored and digest not in there])

    def _rows(self, which: str, *values: object) -> Iterator[Row]:
        for digest, size_bytes, used_s, pinned, stored in self._database.execute(
            f"SELECT digest, size_bytes, used_s, pinned, stored FROM blocks {which}", values
        ):
            yield Row(digest, size_bytes, used_s, bool(pinned), bool(stored))


class Ledger:
    """The bookkeeping of the store whose files these are. Blocks its thread; any thread may use it.

    Errors of all methods: BlockStoreFull when the disk is full, EdgeError when the store cannot be used.
    """

    def __init__(self, files: BlockFiles) -> None:
        self._files = files
        self._path = files.directory / _NAME
        self._mutex = threading.Lock()
        self._lock: int | None = None
        self._database: sqlite3.Connection | None = None
        self._inode = 0
        self._closed = False

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            self._disconnect()

    def run(self, work: Callable[[Changes], T], *, wait_s: float = BUSY_S) -> T:
        """Does `work` in a transaction that no other thread or process sees half of; it is undone when `work` raises.

        Raises EdgeError also when others do not get out of the way in `wait_s`. A damaged database is made anew from the
        files, and `work` then begins again.
        """
        deadline = time.monotonic() + wait_s
        if not self._mutex.acquire(timeout=wait_s):
            raise self._busy()
        try:
            if self._closed:
                raise EdgeError("the block store is closed")
            with told(self._files.directory):
                self._acquire(deadline)
                try:
                    return self._run(work)
                except sqlite3.DatabaseError as error:
                    if not _is_damaged(error):
                        raise
                    log.warning("the ledger of blocks is damaged; it is made anew", reason=str(error))
                    self._disconnect_database()
                    self._delete()
                    return self._run(work)
                finally:
                    self._release()
        finally:
            self._mutex.release()

    def _run(self, work: Callable[[Changes], T]) -> T:
        with _transaction(self._connected()) as changes:
            return work(changes)

    def _acquire(self, deadline: float) -> None:
        """The lock of the directory. Polled, because flock knows no timeout."""
        while True:
            if self._lock is None:
                self._files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._lock = os.open(self._files.directory / "lock", flags, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise self._busy() from None
                time.sleep(_POLL_S)
                continue
            if _inode(self._files.directory / "lock") == os.fstat(self._lock).st_ino:
                return
            # Somebody deleted the directory: whoever makes it anew locks another file.
            os.close(self._lock)
            self._lock = None

    def _release(self) -> None:
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _connected(self) -> sqlite3.Connection:
        if self._database is not None and _inode(self._path) == self._inode:
            return self._database
        self._disconnect_database()
        self._files.prepare()
        self._database = self._open()
        self._inode = _inode(self._path)
        return self._database

    def _open(self) -> sqlite3.Connection:
        """Raises sqlite3.DatabaseError for a damaged one."""
        database = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                damage = sqlite3.DatabaseError(verdict)
                damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise damage
            with _transaction(database) as changes:
                if not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
                    for statement in _statements(_TABLES):
                        database.execute(statement)
                changes.agree(self._files)
        except BaseException:
            database.close()
            raise
        return database

    def _busy(self) -> EdgeError:
        return EdgeError(
            f"the block store in {self._files.directory} is busy",
            remedy="try again; if it stays so, a process that has it open is frozen",
        )

    def _delete(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(_NAME + suffix).unlink(missing_ok=True)

    def _disconnect_database(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _disconnect(self) -> None:
        self._disconnect_database()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[Changes]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield Changes(database)
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


@contextmanager
def told(directory: Path) -> Iterator[None]:
    """Turns what SQLite and the operating system say into BlockStoreFull and EdgeError."""
    try:
        yield
    except sqlite3.Error as error:
        if _primary(error) == sqlite3.SQLITE_FULL:
            raise disk_full(directory) from error
        raise _unusable(directory, str(error)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(directory) from error
        raise _unusable(directory, error.strerror or str(error)) from error


def disk_full(directory: Path) -> BlockStoreFull:
    return BlockStoreFull(
        f"the disk that holds the block store {directory} is full",
        remedy="free some space there, or the store's own with `edgellm kv gc`",
    )


def _unusable(directory: Path, reason: str) -> EdgeError:
    return EdgeError(
        f"the block store in {directory} cannot be used: {reason}",
        remedy="check that it is yours to write, or set EDGELLM_HOME to a directory of your own",
    )


def _is_damaged(error: sqlite3.DatabaseError) -> bool:
    """SQLITE_ERROR is what a table that is not there gives."""
    return _primary(error) in _DAMAGED


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _statements(script: str) -> Iterator[str]:
    """`executescript` would commit in between."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _each(digests: Iterable[bytes]) -> Collection[tuple[bytes]]:
    return [(digest,) for digest in digests]
