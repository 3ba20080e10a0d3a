"""The ledger of a host's quota in a file, so that what was lent today is still known after a restart."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from edgellm.errors import UsageError
from edgellm.hosting.quota import Entry, Kind, Ledger, Period


class _Row(msgspec.Struct, frozen=True):
    who: str
    kind: Kind
    period: Period
    began: float
    amount: float


class _File(msgspec.Struct, frozen=True):
    version: int
    taken: tuple[_Row, ...]


def load_ledger(path: Path) -> Ledger:
    """What the file at `path` says; nothing taken where there is none. Raises UsageError where it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Ledger({})
    except OSError as error:
        raise UsageError(f"cannot read the quota's ledger {path}: {error.strerror}") from error
    try:
        return decode_ledger(content)
    except ValueError as error:
        raise UsageError(
            f"the quota's ledger {path} is damaged",
            remedy="remove it; what was lent so far is then lent once more",
        ) from error


def decode_ledger(content: bytes) -> Ledger:
    """Raises ValueError for what is no ledger."""
    try:
        rows = msgspec.json.decode(content, type=_File).taken
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    return Ledger({(row.who, row.kind, row.period): Entry(row.began, row.amount) for row in rows})


def save_ledger(ledger: Ledger, path: Path) -> None:
    """Replaces the file at `path`, whole or not at all. Raises OSError."""
    rows = tuple(_Row(*key, entry.began, entry.amount) for key, entry in sorted(ledger.entries.items()))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(_File(1, rows)))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
