"""A host's side of receipts: what it signs, and what it remembers of what it lent, for its owner."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import structlog

from edgellm.errors import ProtocolViolation
from edgellm.leasing.lease import Lease
from edgellm.p2p.identity import Identity
from edgellm.trust.receipt import Receipt, countersign, objection, open_signed

log = structlog.get_logger(__name__)

MAX_LEASES = 10_000
"""That are remembered."""
BUSY_S = 1.0
_NAME = "lent.sqlite"
_TABLE = """
CREATE TABLE IF NOT EXISTS lent (
    lease TEXT PRIMARY KEY, requester TEXT NOT NULL, digest TEXT NOT NULL, first_layer INTEGER NOT NULL,
    end_layer INTEGER NOT NULL, began REAL NOT NULL, seconds REAL NOT NULL, answers INTEGER, tokens INTEGER, ended TEXT NOT NULL
)
"""
_BY_TIME = "CREATE INDEX IF NOT EXISTS lent_by_time ON lent (began)"


@dataclass(frozen=True, slots=True)
class Lent:
    """One lease that is over."""

    lease: str
    requester: str
    digest: str
    first_layer: int
    end_layer: int
    began_at: float
    seconds: float
    answers: int | None
    """As the requester's receipt says; None: it sent none."""
    tokens: int | None
    ended: str
    """Why it did: a code of Ended in wire.proto."""


class HostAccounts:
    """Of one host."""

    def __init__(
        self, identity: Identity, directory: Path | None = None, now: Callable[[], float] = time.time
    ) -> None:
        """`directory` None: nothing is remembered."""
        self._identity, self._now = identity, now
        self._path = directory / _NAME if directory is not None else None
        self._receipts: dict[str, Receipt | None] = {}
        """By lease, of those that still run and have been asked for one; None: it was not signed."""

    def countersign(self, envelope: bytes, lease: Lease) -> bytes:
        """The host's signature under a requester's receipt; b"" where it does not sign. A lease has one attempt."""
        if lease.id in self._receipts:
            return b""
        self._receipts[lease.id] = None
        try:
            receipt = open_signed(envelope)
        except ProtocolViolation as error:
            log.info("a receipt was not signed", lease=lease.id, why=str(error))
            return b""
        against = objection(receipt, host=self._identity.peer, lease=lease, now=self._now())
        if against is not None:
            log.info("a receipt was not signed", lease=lease.id, why=f"it {against}")
            return b""
        self._receipts[lease.id] = receipt
        return countersign(envelope, self._identity)

    def ended(self, lease: Lease, code: str) -> None:
        """Remembers a lease. What cannot be written is logged: no lease is worth less for it."""
        receipt = self._receipts.pop(lease.id, None)
        if self._path is None:
            return
        row = (
            lease.id,
            lease.requester,
            lease.digest,
            lease.first_layer,
            lease.end_layer,
            lease.granted_at,
            max(0.0, self._now() - lease.granted_at),
            receipt.answers if receipt else None,
            receipt.tokens if receipt else None,
            code,
        )
        try:
            with closing(self._opened()) as database, database:
                database.execute(f"INSERT OR IGNORE INTO lent VALUES ({', '.join('?' * len(row))})", row)
                database.execute(
                    "DELETE FROM lent WHERE lease IN (SELECT lease FROM lent ORDER BY began DESC LIMIT -1 OFFSET ?)",
                    (MAX_LEASES,),
                )
        except sqlite3.Error as error:
            log.warning("a lease could not be remembered", lease=lease.id, error=str(error))

    def _opened(self) -> sqlite3.Connection:
        assert self._path is not None
        return _open(self._path)


def lent(directory: Path, most: int = 100) -> tuple[Lent, ...]:
    """The last leases that are over, the newest first."""
    path = directory / _NAME
    if not path.exists():
        return ()
    with closing(_open(path)) as database:
        rows = database.execute("SELECT * FROM lent ORDER BY began DESC LIMIT ?", (most,))
        return tuple(Lent(*row) for row in rows)


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=BUSY_S)
    database.execute(_TABLE)
    database.execute(_BY_TIME)
    return database
