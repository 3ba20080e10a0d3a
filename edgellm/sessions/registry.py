"""Which sessions there are on this machine: one directory each, named like the session, and a journal that outlives it."""

from __future__ import annotations

import fcntl
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgellm.errors import SessionError, UsageError
from edgellm.paths import Paths

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
    journal: Path | None = None
    """`edgellm.sessions.journal`, where the session has one."""

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
    """The sessions below one directory, and their journals in another."""

    def __init__(self, directory: Path, journals: Path) -> None:
        self._directory, self._journals = directory, journals
        for each in (directory, journals):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)

    @classmethod
    def of(cls, paths: Paths) -> Registry:
        return cls(paths.sessions, paths.journals)

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
        files = self._files(chosen)
        if self._journal(chosen).exists() and not files.directory.exists():
            raise SessionError(
                f"there is a session named {chosen!r} that crashed",
                remedy=f"bring it back: edgellm session recover {chosen}; or forget it: edgellm session close {chosen}",
            )
        try:
            files.directory.mkdir(mode=0o700)
        except FileExistsError:
            raise SessionError(
                f"there is a session named {chosen!r} already",
                remedy=f"use it with --session {chosen}, or close it: edgellm session close {chosen}",
            ) from None
        return chosen, files

    @contextmanager
    def reserve_again(self, name: str) -> Iterator[SessionFiles]:
        """A new, empty place for a session whose daemon is dead and whose journal is there. Of several who want it at the same
        time one has it; nobody else gets in as long as the context lasts.

        Raises SessionError when there is none of that name, when its daemon runs or is on its way, or another command recovers
        it.
        """
        files = self.files(name)
        with self._journal(name).with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SessionError(
                    f"another command recovers session {name!r}",
                    remedy="edgellm session list shows when it has",
                ) from None
            record = read_record(files)
            if record is not None and runs(record.pid, record.process_started):
                raise SessionError(
                    f"session {name!r} has not crashed: it runs", remedy=f"use it with --session {name}"
                )
            if record is None and not self._journal(name).is_file():
                raise SessionError(
                    f"session {name!r} has said nothing yet",
                    remedy="edgellm session list shows when it is open",
                )
            shutil.rmtree(files.directory, ignore_errors=True)
            files.directory.mkdir(mode=0o700)
            yield files

    def files(self, name: str) -> SessionFiles:
        """Where the session is. Raises SessionError when there is none of that name."""
        files = self._files(name)
        if not _NAME.fullmatch(name) or not (files.directory.is_dir() or self._journal(name).is_file()):
            known = ", ".join(self.names()) or "none is open"
            raise SessionError(f"there is no session named {name!r}", remedy=f"sessions: {known}")
        return files

    def names(self) -> tuple[str, ...]:
        open_ = {entry.name for entry in self._directory.iterdir() if entry.is_dir()}
        return tuple(sorted(open_ | {entry.stem for entry in self._journals.glob("*.journal")}))

    def remove(self, name: str, *, keep_journal: bool = False) -> None:
        """Forgets a session; with its journal kept, it can be recovered. Its daemon must be gone."""
        forget(self._files(name), keep_journal=keep_journal)

    def _files(self, name: str) -> SessionFiles:
        return SessionFiles(self._directory / name, self._journal(name))

    def _journal(self, name: str) -> Path:
        return self._journals / f"{name}.journal"


def forget(files: SessionFiles, *, keep_journal: bool = False) -> None:
    """As `Registry.remove`."""
    if files.journal is not None and not keep_journal:
        # First: what is left in between is no session that crashed.
        for file in (files.journal, files.journal.with_suffix(".lock")):
            file.unlink(missing_ok=True)
    shutil.rmtree(files.directory, ignore_errors=True)


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
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
