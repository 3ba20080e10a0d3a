"""The records that a node knows: its own pieces, and, at a requester, what the holders of its scopes announced.

SQLite, because several processes of one user (questions, sessions) share a file, and any of them can be killed at any time. A
cache: whatever goes wrong with it is logged and counts as knowing nothing.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from edgellm.blocks.cid import Cid
from edgellm.kv.records import Record
from edgellm.kv.region import Region
from edgellm.p2p.network import PeerAddress

log = structlog.get_logger(__name__)

HELD = "held.sqlite"
"""A host's records, of its own pieces, and its figures."""
TRACKED = "tracked.sqlite"
"""A requester's, of pieces that its clusters left on hosts."""
MAX_RECORDS = 200_000
"""About 100 MB of disk; 4 MiB pieces of 800 GB."""
MAX_HOLDERS_OF_A_PIECE = 4
MAX_HOLDERS = 1024
BUSY_S = 0.5
TOUCH_EVERY_S = 60.0
"""How exact the order of use is; without it every lookup would write."""
SWEEP_EVERY = 256
"""Records put between two looks for those to be dropped."""
_NAMES_IN_A_QUERY = 256

_TABLES = """
CREATE TABLE IF NOT EXISTS pieces (
    scope BLOB, name BLOB, first_layer INTEGER, end_layer INTEGER, first_head INTEGER, end_head INTEGER, holder TEXT,
    digests BLOB, size_bytes INTEGER, expires REAL, used REAL,
    PRIMARY KEY (scope, name, first_layer, end_layer, first_head, end_head, holder)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON pieces (used);
CREATE INDEX IF NOT EXISTS by_expiry ON pieces (expires);
CREATE TABLE IF NOT EXISTS holders (peer TEXT PRIMARY KEY, addresses TEXT, seen REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS figures (name TEXT PRIMARY KEY, value REAL) WITHOUT ROWID;
"""
_COLUMNS = (
    "scope, name, first_layer, end_layer, first_head, end_head, holder, digests, size_bytes, expires, used"
)
_SAME_PIECE = (
    "scope = ? AND name = ? AND first_layer = ? AND end_layer = ? AND first_head = ? AND end_head = ?"
)
_DIGEST_BYTES = 32

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class IndexStat:
    records: int
    own_records: int
    """Of pieces that this node holds itself."""
    scopes: int
    holders: int


class RecordIndex:
    """Records in one file. Every call takes a moment at most and raises nothing; made by `open_index`."""

    def __init__(self, path: Path, *, max_records: int, now: Callable[[], float]) -> None:
        self._path = path
        self._max_records = max_records
        self._now = now
        # One call at a time: SQLite would make others wait anyway, and a thread each.
        self._turn = trio.CapacityLimiter(1)
        self._connection: sqlite3.Connection | None = None
        # A call that was cancelled goes on in its thread; SQLite does not survive that its connection is closed meanwhile.
        self._using = threading.Lock()
        self._is_closed = False
        self._until_sweep = 0

    async def put(self, records: Sequence[Record]) -> int:
        """Keeps records; how many are new. Of one piece at most `MAX_HOLDERS_OF_A_PIECE` holders are kept.

        A record that is there already stays as it is but for its expiry.
        """
        return await self._do(lambda connection: self._put(connection, records), 0)

    async def find(
        self, scope: bytes, names: Sequence[bytes], *, holder: str = ""
    ) -> dict[bytes, tuple[Record, ...]]:
        """What is known of each name, where anything is; of `holder` alone where one is given. They count as used now."""
        return await self._do(lambda connection: self._find(connection, scope, names, holder), {})

    async def of_holder(self, scope: bytes, holder: str, *, limit: int) -> tuple[Record, ...]:
        """The `limit` records of `holder` that were used last."""
        return await self._do(
            lambda connection: _of_holder(connection, scope, holder, limit, self._now()), ()
        )

    async def one_of_each_holder(self, scope: bytes, *, but: str, limit: int) -> tuple[Record, ...]:
        """The record used last of each of the `limit` holders, of all but one, that were used last."""
        return await self._do(
            lambda connection: _one_of_each_holder(connection, scope, but, limit, self._now()), ()
        )

    async def forget(self, record: Record) -> None:
        """Drops one record, of its holder alone."""
        await self._do(lambda connection: _forget(connection, record), None)

    async def saw(self, holder: PeerAddress) -> None:
        """Remembers where a holder can be reached."""
        await self._do(lambda connection: _saw(connection, holder, self._now()), None)

    async def addresses(self, holders: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Where holders said that they can be reached."""
        wanted = tuple(holders)
        return await self._do(lambda connection: _addresses(connection, wanted), {})

    async def add_figures(self, figures: Mapping[str, float]) -> None:
        """Adds to sums that outlive this process (`edgellm.kv.figures`)."""
        rows = list(figures.items())
        await self._do(lambda connection: _add_figures(connection, rows), None)

    async def figures(self) -> dict[str, float]:
        return await self._do(
            lambda connection: dict(connection.execute("SELECT name, value FROM figures")), {}
        )

    async def stat(self, own: str = "") -> IndexStat:
        """`own` is this node's peer id."""
        return await self._do(lambda connection: _stat(connection, own), IndexStat(0, 0, 0, 0))

    def close(self) -> None:
        """Waits for a call that is under way. Later ones know nothing."""
        with self._using:
            self._is_closed = True
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _do(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        def run() -> T:
            try:
                with self._using:
                    if self._is_closed:
                        return otherwise
                    with self._connected() as connection, connection:
                        return work(connection)
            except sqlite3.Error as error:
                log.warning(
                    "the index of KV records failed; nothing is known of them",
                    path=str(self._path),
                    error=str(error),
                )
                return otherwise

        return await trio.to_thread.run_sync(run, limiter=self._turn, abandon_on_cancel=True)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._connection is None:
                self._connection = _connect(self._path)
            yield self._connection
        except sqlite3.DatabaseError as error:
            # Exactly this class: the file is no database (any more). Its subclasses are busy, full and the like.
            if type(error) is sqlite3.DatabaseError:
                log.warning("the index of KV records is damaged and begins anew", path=str(self._path))
                self._disconnect()
                for suffix in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            raise

    def _put(self, connection: sqlite3.Connection, records: Sequence[Record]) -> int:
        now = self._now()
        kept = 0
        for record in records:
            if record.expires_at <= now:
                continue
            key = _key(record)
            others = connection.execute(
                f"SELECT count(*) FROM pieces WHERE {_SAME_PIECE} AND holder != ? AND expires > ?",
                (*key, record.holder, now),
            ).fetchone()[0]
            if others >= MAX_HOLDERS_OF_A_PIECE:
                continue
            digests = b"".join(cid.digest for cid in record.cids)
            before = connection.total_changes
            known = connection.execute(
                f"SELECT digests FROM pieces WHERE {_SAME_PIECE} AND holder = ?", (*key, record.holder)
            ).fetchone()
            connection.execute(
                f"INSERT INTO pieces ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?) "
                "ON CONFLICT DO UPDATE SET expires = max(expires, excluded.expires) WHERE digests = excluded.digests",
                (*key, record.holder, digests, record.size_bytes, record.expires_at, now),
            )
            kept += known is None and connection.total_changes > before
        self._until_sweep -= len(records)
        if self._until_sweep <= 0:
            self._until_sweep = SWEEP_EVERY
            self._sweep(connection, now)
        return kept

    def _sweep(self, connection: sqlite3.Connection, now: float) -> None:
        connection.execute("DELETE FROM pieces WHERE expires <= ?", (now,))
        count = connection.execute("SELECT count(*) FROM pieces").fetchone()[0]
        if count > self._max_records:
            excess = count - self._max_records * 9 // 10
            connection.execute(
                "DELETE FROM pieces WHERE (scope, name, first_layer, end_layer, first_head, end_head, holder) IN (SELECT "
                "scope, name, first_layer, end_layer, first_head, end_head, holder FROM pieces ORDER BY used LIMIT ?)",
                (excess,),
            )
        connection.execute(
            "DELETE FROM holders WHERE peer NOT IN (SELECT peer FROM holders ORDER BY seen DESC LIMIT ?)",
            (MAX_HOLDERS,),
        )

    def _find(
        self, connection: sqlite3.Connection, scope: bytes, names: Sequence[bytes], holder: str
    ) -> dict[bytes, tuple[Record, ...]]:
        now = self._now()
        found: dict[bytes, list[Record]] = {}
        for start in range(0, len(names), _NAMES_IN_A_QUERY):
            some = names[start : start + _NAMES_IN_A_QUERY]
            where = f"scope = ? AND name IN ({','.join('?' * len(some))}) AND expires > ?"
            given: tuple[object, ...] = (scope, *some, now)
            if holder:
                where, given = f"{where} AND holder = ?", (*given, holder)
            for row in connection.execute(f"SELECT {_COLUMNS} FROM pieces WHERE {where}", given):
                record = _record(row)
                found.setdefault(record.name, []).append(record)
            connection.execute(
                f"UPDATE pieces SET used = ? WHERE {where} AND used < ?", (now, *given, now - TOUCH_EVERY_S)
            )
        return {name: tuple(records) for name, records in found.items()}


@contextmanager
def open_index(
    path: Path, *, max_records: int = MAX_RECORDS, now: Callable[[], float] = time.time
) -> Iterator[RecordIndex]:
    """The index in the file at `path`, made when there is none; its directory must be there."""
    with closing(RecordIndex(path, max_records=max_records, now=now)) as index:
        yield index


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
    try:
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        # What the last seconds before a power failure wrote may be lost; the file stays whole.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_TABLES)
    except BaseException:
        connection.close()
        raise
    return connection


def _key(record: Record) -> tuple[bytes, bytes, int, int, int, int]:
    region = record.region
    return (
        record.scope,
        record.name,
        region.first_layer,
        region.end_layer,
        region.first_head,
        region.end_head,
    )


def _record(row: tuple[bytes, bytes, int, int, int, int, str, bytes, int, float, float]) -> Record:
    scope, name, first_layer, end_layer, first_head, end_head, holder, digests, size_bytes, expires, _ = row
    starts = range(0, len(digests), _DIGEST_BYTES)
    return Record(
        scope=scope,
        name=name,
        region=Region(first_layer, end_layer, first_head, end_head),
        cids=tuple(Cid(digests[start : start + _DIGEST_BYTES]) for start in starts),
        size_bytes=size_bytes,
        holder=holder,
        expires_at=expires,
    )


def _of_holder(
    connection: sqlite3.Connection, scope: bytes, holder: str, limit: int, now: float
) -> tuple[Record, ...]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM pieces WHERE scope = ? AND holder = ? AND expires > ? ORDER BY used DESC LIMIT ?",
        (scope, holder, now, limit),
    )
    return tuple(_record(row) for row in rows)


def _one_of_each_holder(
    connection: sqlite3.Connection, scope: bytes, but: str, limit: int, now: float
) -> tuple[Record, ...]:
    # SQLite takes the other columns of a max() from its row (https://sqlite.org/lang_select.html#bareagg).
    rows = connection.execute(
        f"SELECT {_COLUMNS.replace('used', 'max(used)')} FROM pieces WHERE scope = ? AND holder != ? AND expires > ? "
        "GROUP BY holder ORDER BY 11 DESC LIMIT ?",
        (scope, but, now, limit),
    )
    return tuple(_record(row) for row in rows)


def _forget(connection: sqlite3.Connection, record: Record) -> None:
    connection.execute(
        f"DELETE FROM pieces WHERE {_SAME_PIECE} AND holder = ?", (*_key(record), record.holder)
    )


def _saw(connection: sqlite3.Connection, holder: PeerAddress, now: float) -> None:
    connection.execute(
        "INSERT INTO holders VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET addresses = excluded.addresses, seen = excluded.seen",
        (holder.peer, json.dumps(holder.addresses), now),
    )


def _addresses(connection: sqlite3.Connection, holders: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    marks = ",".join("?" * len(holders))
    rows = connection.execute(f"SELECT peer, addresses FROM holders WHERE peer IN ({marks})", holders)
    return {peer: tuple(json.loads(addresses)) for peer, addresses in rows}


def _add_figures(connection: sqlite3.Connection, figures: list[tuple[str, float]]) -> None:
    connection.executemany(
        "INSERT INTO figures VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value", figures
    )


def _stat(connection: sqlite3.Connection, own: str) -> IndexStat:
    records, scopes = connection.execute("SELECT count(*), count(DISTINCT scope) FROM pieces").fetchone()
    own_records = connection.execute("SELECT count(*) FROM pieces WHERE holder = ?", (own,)).fetchone()[0]
    holders = connection.execute("SELECT count(*) FROM holders").fetchone()[0]
    return IndexStat(records, own_records, scopes, holders)
