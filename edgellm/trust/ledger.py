"""What was seen of hosts: receipts, failures, checks. SQLite, used by several processes at once.

What is over a bound goes, the oldest first. A damaged file is put aside and begun anew: experience comes back.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from edgellm.trust.receipt import Receipt
from edgellm.trust.score import CHECK_WEIGHT, Caught, Outcome
from edgellm.trust.verdict import Judgement, culprit

log = structlog.get_logger(__name__)

MAX_HOSTS = 4096
MAX_ROWS = 256
"""Of each kind, of one host; sums are kept apart."""
BUSY_S = 1.0
"""How long a change waits for other processes: the one that waits has heartbeats to send."""
MAX_TEXT = 300
_NAME = "trust.sqlite"
_VERSION = 1
_TABLES = f"""
PRAGMA user_version = {_VERSION};
CREATE TABLE hosts (
    peer TEXT PRIMARY KEY, name TEXT NOT NULL, answers INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0,
    seconds REAL NOT NULL DEFAULT 0, unsigned INTEGER NOT NULL DEFAULT 0, seen REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE receipts (
    host TEXT NOT NULL, lease TEXT NOT NULL, at REAL NOT NULL, answers INTEGER NOT NULL, envelope BLOB,
    PRIMARY KEY (host, lease)
) WITHOUT ROWID;
CREATE INDEX receipts_by_time ON receipts (host, at);
CREATE TABLE failures (host TEXT NOT NULL, at REAL NOT NULL, reason TEXT NOT NULL);
CREATE INDEX failures_by_time ON failures (host, at);
CREATE TABLE checks (host TEXT NOT NULL, at REAL NOT NULL, verdict TEXT NOT NULL, hosts TEXT NOT NULL);
CREATE INDEX checks_by_time ON checks (host, at);
CREATE TABLE caught (host TEXT PRIMARY KEY, at REAL NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
"""
_ROWS = ("receipts", "failures", "checks")


@dataclass(frozen=True, slots=True)
class HostRecord:
    """All that is known of one host."""

    peer: str
    name: str
    """As it called itself when it was last seen."""
    answers: int
    tokens: int
    seconds: float
    """That it lent."""
    failures: int
    checks_passed: int
    checks_failed: int
    """Answers of which it is among those who got them wrong, or contradicted by others without anybody to decide."""
    unsigned: int
    """Leases for which it signed no receipt."""
    seen_at: float
    outcomes: tuple[Outcome, ...]
    caught: Caught | None


class Ledger:
    """Of one user. Thread-safe: each call has a connection of its own. Raises sqlite3.Error where the disk does not take it."""

    def __init__(
        self, directory: Path, now: Callable[[], float] = time.time, *, busy_s: float = BUSY_S
    ) -> None:
        self._path = directory / _NAME
        self._now, self._busy_s = now, busy_s

    def served(
        self, receipt: Receipt, name: str, envelope: bytes | None, *, asked_to_sign: bool = True
    ) -> bool:
        """Notes what a host did; `envelope` is signed by both. Whether it was not known yet: a lease counts once."""
        with self._changing() as database:
            added = database.execute(
                "INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?, ?)",
                (receipt.host, receipt.lease, receipt.ended_at, receipt.answers, envelope),
            ).rowcount
            if not added:
                return False
            self._saw(database, receipt.host, name)
            database.execute(
                "UPDATE hosts SET answers = answers + ?, tokens = tokens + ?, seconds = seconds + ?, unsigned = unsigned + ? "
                "WHERE peer = ?",
                (
                    receipt.answers,
                    receipt.tokens,
                    receipt.seconds,
                    asked_to_sign and envelope is None,
                    receipt.host,
                ),
            )
            self._prune(database, receipt.host)
            return True

    def failed(self, peer: str, name: str, reason: str) -> None:
        """A host was lost while it had a lease."""
        with self._changing() as database:
            self._saw(database, peer, name)
            database.execute("INSERT INTO failures VALUES (?, ?, ?)", (peer, self._now(), reason[:MAX_TEXT]))
            self._prune(database, peer)

    def checked(self, judgement: Judgement, names: dict[str, str]) -> tuple[str, ...]:
        """Notes what came of a check. The hosts that are caught by it, in view of all checks before."""
        with self._changing() as database:
            suspects: set[str] = set()
            for verdict, sets in (
                ("right", judgement.right),
                ("wrong", judgement.wrong),
                ("unresolved", judgement.unresolved),
            ):
                for hosts in sets:
                    for peer in sorted(hosts):
                        self._saw(database, peer, names.get(peer, ""))
                        database.execute(
                            "INSERT INTO checks VALUES (?, ?, ?, ?)",
                            (peer, self._now(), verdict, " ".join(sorted(hosts))),
                        )
                        self._prune(database, peer)
                    if verdict == "wrong":
                        suspects |= hosts
            caught = []
            for peer in sorted(suspects):
                wrong, right = (_sets(database, peer, verdict) for verdict in ("wrong", "right"))
                reason = culprit(peer, wrong, right)
                if reason is not None:
                    done = database.execute(
                        "INSERT OR IGNORE INTO caught VALUES (?, ?, ?)", (peer, self._now(), reason)
                    )
                    caught += [peer] * done.rowcount
            return tuple(caught)

    def record(self, peer: str) -> HostRecord | None:
        """None for a host that nothing is known of."""
        with self._reading() as database:
            row = database.execute("SELECT * FROM hosts WHERE peer = ?", (peer,)).fetchone()
            return _record(database, row) if row else None

    def records(self) -> tuple[HostRecord, ...]:
        """Those seen last first."""
        with self._reading() as database:
            rows = database.execute("SELECT * FROM hosts ORDER BY seen DESC, peer").fetchall()
            return tuple(_record(database, row) for row in rows)

    def receipts(self, peer: str) -> tuple[bytes, ...]:
        """The last ones that both sides signed, the newest first."""
        with self._reading() as database:
            rows = database.execute(
                "SELECT envelope FROM receipts WHERE host = ? AND envelope IS NOT NULL ORDER BY at DESC",
                (peer,),
            )
            return tuple(envelope for (envelope,) in rows)

    def forgive(self, peer: str) -> None:
        """Forgets what speaks against a host; what it served stays."""
        with self._changing() as database:
            for table in ("failures", "caught"):
                database.execute(f"DELETE FROM {table} WHERE host = ?", (peer,))
            database.execute("DELETE FROM checks WHERE host = ? AND verdict != 'right'", (peer,))

    def _saw(self, database: sqlite3.Connection, peer: str, name: str) -> None:
        database.execute(
            "INSERT INTO hosts (peer, name, seen) VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET seen = excluded.seen, name = iif(excluded.name = '', name, excluded.name)",
            (peer, name[:MAX_TEXT], self._now()),
        )
        # Not those that are caught: else a liar would be forgotten by making others known.
        gone = database.execute(
            "SELECT peer FROM hosts WHERE peer NOT IN (SELECT host FROM caught) ORDER BY seen DESC LIMIT -1 OFFSET ?",
            (MAX_HOSTS,),
        ).fetchall()
        for (old,) in gone:
            for table in _ROWS:
                database.execute(f"DELETE FROM {table} WHERE host = ?", (old,))
            database.execute("DELETE FROM hosts WHERE peer = ?", (old,))

    def _prune(self, database: sqlite3.Connection, peer: str) -> None:
        for table in _ROWS:
            key = "lease" if table == "receipts" else "rowid"
            database.execute(
                f"DELETE FROM {table} WHERE host = ?1 AND {key} IN "
                f"(SELECT {key} FROM {table} WHERE host = ?1 ORDER BY at DESC LIMIT -1 OFFSET ?2)",
                (peer, MAX_ROWS),
            )

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            database = self._opened()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) not in (
                sqlite3.SQLITE_CORRUPT,
                sqlite3.SQLITE_NOTADB,
            ):
                raise
            log.warning("what was known of hosts is damaged, and begun anew", file=str(self._path))
            self._path.replace(self._path.with_suffix(".damaged"))
            database = self._opened()
        with closing(database):
            yield database

    def _opened(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = sqlite3.connect(self._path, timeout=self._busy_s, isolation_level=None)
        try:
            if database.execute("PRAGMA user_version").fetchone() != (_VERSION,):
                database.execute("BEGIN IMMEDIATE")
                if database.execute("PRAGMA user_version").fetchone() != (_VERSION,):
                    for statement in filter(str.strip, _TABLES.split(";")):
                        database.execute(statement)
                database.execute("COMMIT")
            # Only a power failure loses the last notes; nothing waits for the disk.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            database.close()
            raise
        return database


def _sets(database: sqlite3.Connection, peer: str, verdict: str) -> list[frozenset[str]]:
    rows = database.execute("SELECT hosts FROM checks WHERE host = ? AND verdict = ?", (peer, verdict))
    return [frozenset(hosts.split()) for (hosts,) in rows]


def _record(database: sqlite3.Connection, row: Sequence[object]) -> HostRecord:
    peer, name, answers, tokens, seconds, unsigned, seen = row
    outcomes = [
        Outcome(at, good=1.0)
        for (at,) in database.execute("SELECT at FROM receipts WHERE host = ? AND answers > 0", (peer,))
    ]
    failures = database.execute("SELECT at FROM failures WHERE host = ?", (peer,)).fetchall()
    outcomes += [Outcome(at, bad=1.0) for (at,) in failures]
    passed = failed = 0
    for at, verdict, hosts in database.execute(
        "SELECT at, verdict, hosts FROM checks WHERE host = ?", (peer,)
    ):
        if verdict == "right":
            passed += 1
            outcomes.append(Outcome(at, good=CHECK_WEIGHT))
        else:
            failed += 1
            # Of several, one is to blame; of a contradiction, one side.
            share = len(hosts.split()) * (2 if verdict == "unresolved" else 1)
            outcomes.append(Outcome(at, bad=CHECK_WEIGHT / share))
    found = database.execute("SELECT at, reason FROM caught WHERE host = ?", (peer,)).fetchone()
    return HostRecord(
        peer=str(peer),
        name=str(name),
        answers=int(answers),  # type: ignore[call-overload]
        tokens=int(tokens),  # type: ignore[call-overload]
        seconds=float(seconds),  # type: ignore[arg-type]
        failures=len(failures),
        checks_passed=passed,
        checks_failed=failed,
        unsigned=int(unsigned),  # type: ignore[call-overload]
        seen_at=float(seen),  # type: ignore[arg-type]
        outcomes=tuple(outcomes),
        caught=Caught(*found) if found else None,
    )
