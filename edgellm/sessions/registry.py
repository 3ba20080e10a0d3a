"""Which sessions there are on this machine: one directory each, named like the session."""

from __future__ import annotations

import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgellm.errors import SessionError, UsageError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_WORDS = (
    "amber",
    "birch",
    "cedar",
    "coral",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "ivory",
    "jade",
    "larch",
)


class SessionRecord(msgspec.Struct, frozen=True):
    """What is kept of a session on disk."""

    name: str
    model: str
    pid: int
    process_started: float
    """`psutil.Process.create_time()`: tells a reused pid from the daemon."""
    state: str = "starting"
    """"starting", "ready" or "failed"; a daemon that closes well removes its directory."""
    failure: str = ""
    remedy: str = ""
    exit_code: int = 1
    kind: str = ""
    """Which of `edgellm.errors` the failure was."""


@dataclass(frozen=True, slots=True)
class SessionFiles:
    directory: Path

    @property
    def socket(self) -> Path:
        return self.directory / "control.sock"

    @property
    def record(self) -> Path:
        return self.directory / "session.json"

    @property
    def progress(self) -> Path:
        """JSON lines: what happens during bring-up, for the CLI to follow."""
        return self.directory / "progress"

    @property
    def log(self) -> Path:
        return self.directory / "log"


class Registry:
    """The sessions below one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def reserve(self, name: str | None) -> tuple[str, SessionFiles]:
        """A new, empty place for a session; makes a name when none is given.

        Raises UsageError for a name that is no name, SessionError when it is taken.
        """
        if name is not None and not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot be a session's name",
                remedy="use up to 32 lower-case letters, digits and hyphens",
            )
        chosen = name or f"{secrets.choice(_WORDS)}-{secrets.token_hex(2)}"
        files = SessionFiles(self._directory / chosen)
        try:
            files.directory.mkdir(mode=0o700)
        except FileExistsError:
            raise SessionError(
                f"there is a session named {chosen!r} already",
                remedy=f"use it with --session {chosen}, or close it: edgellm session close {chosen}",
            ) from None
        return chosen, files

    def files(self, name: str) -> SessionFiles:
        """Where the session is. Raises SessionError when there is none of that name."""
        files = SessionFiles(self._directory / name)
        if not _NAME.fullmatch(name) or not files.directory.is_dir():
            known = ", ".join(self.names()) or "none is open"
            raise SessionError(f"there is no session named {name!r}", remedy=f"sessions: {known}")
        return files

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(entry.name for entry in self._directory.iterdir() if entry.is_dir()))

    def remove(self, name: str) -> None:
        """Forgets a session. Its daemon must be gone."""
        shutil.rmtree(self._directory / name, ignore_errors=True)


def runs(pid: int, started: float) -> bool:
    """Whether the process that had `pid` and began at `started` (`SessionRecord.process_started`) is still there."""
    # Not needed for a question to a session that answers, which is to begin at once.
    import psutil

    try:
        process = psutil.Process(pid)
        return process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write_record(files: SessionFiles, record: SessionRecord) -> None:
    partial = files.record.with_suffix(".new")
    partial.write_bytes(msgspec.json.encode(record))
    partial.replace(files.record)


def read_record(files: SessionFiles) -> SessionRecord | None:
    """The record, or None where the daemon has not written one or it cannot be read."""
    try:
        return msgspec.json.decode(files.record.read_bytes(), type=SessionRecord)
    except (OSError, msgspec.DecodeError):
        return None
