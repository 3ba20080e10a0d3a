"""Blocks as files, named by digest: `ab/cdef...` below the store's directory, and what is being written below `writing`.

256 directories keep writers out of each other's way (one directory made 1,000 small puts 1.7 times slower on ext4) and
cost a put of 64 blocks 6 ms of synchronisation.

A file appears under its name only when all of it is on the disk: written to a temporary name, synchronised, renamed, and the
directory synchronised before a put returns. Against `kill -9` the rename alone would do, because the kernel keeps what a dead
process wrote; the synchronisation is for power loss. Where a disk lies about it, reading still verifies.

A file's mode says whether it is pinned (read-only) and its modification time when it was written, so that the files alone tell
everything that the ledger must know.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from edgellm.blocks.cid import Cid
from edgellm.blocks.store import MAX_BLOCK_BYTES

log = structlog.get_logger(__name__)

_WRITING = "writing"
_ALIVE = "alive"
_PLAIN_MODE = 0o600
_PINNED_MODE = 0o400


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a block's file says of it."""

    digest: bytes
    size_bytes: int
    written_s: float
    """Seconds since the epoch."""
    pinned: bool


class BlockFiles:
    """The files of one store. Every method may raise OSError where nothing else is said; none takes locks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writing: Path | None = None
        self._alive: int | None = None

    def prepare(self) -> None:
        """Makes the directories that are missing, and a place for this process's writes; sweeps those of killed processes.

        Two processes must not be in here at once (the ledger's lock).
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = {path.name for path in self.directory.iterdir()}
        for first in range(256):
            if f"{first:02x}" not in there:
                (self.directory / f"{first:02x}").mkdir(mode=0o700, exist_ok=True)
        (self.directory / _WRITING).mkdir(mode=0o700, exist_ok=True)
        _synchronise_directory(self.directory)
        if self._writing is None or not self._writing.exists():
            self._take_place()
        self._sweep()

    def close(self) -> None:
        """Leaves nothing behind of this process's writes."""
        if self._writing is not None:
            shutil.rmtree(self._writing, ignore_errors=True)
            self._writing = None
        if self._alive is not None:
            os.close(self._alive)
            self._alive = None

    def write(self, block: bytes) -> Path:
        """A temporary file with this content, on the disk for good."""
        if self._writing is None:
            raise OSError("the block store is closed")
        path = self._writing / secrets.token_hex(8)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PLAIN_MODE)
        try:
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fdatasync(descriptor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return path

    def publish(self, temporary: Path, digest: bytes, *, pinned: bool) -> None:
        """Gives a written file its name. Power loss can undo that until `synchronise`."""
        if pinned:
            temporary.chmod(_PINNED_MODE)
        temporary.replace(self._path(digest))

    def synchronise(self, digests: Iterable[bytes]) -> None:
        """After this not even power loss takes these names away."""
        for directory in {self._path(digest).parent for digest in digests}:
            _synchronise_directory(directory)

    def read(self, digest: bytes) -> bytes | None:
        """The block; None where there is none or the file's content is not it."""
        try:
            descriptor = os.open(self._path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # One byte more than a block can have, so that a longer file is not taken for its beginning.
            block = os.read(descriptor, MAX_BLOCK_BYTES + 1)
        except OSError as error:
            log.warning("a block cannot be read", cid=str(Cid(digest)), reason=str(error))
            return None
        finally:
            os.close(descriptor)
        return block if Cid(digest).matches(block) else None

    def exists(self, digest: bytes) -> bool:
        """Whether there is a file of this name; its content is not looked at."""
        try:
            return stat.S_ISREG(self._path(digest).lstat().st_mode)
        except OSError:
            return False

    def remove(self, digest: bytes) -> None:
        """Nothing happens where there is none."""
        try:
            self._path(digest).unlink(missing_ok=True)
        except IsADirectoryError:
            shutil.rmtree(self._path(digest))

    def mark(self, digest: bytes, *, pinned: bool) -> bool:
        """Notes in the file itself, for good, whether it is pinned; False where there is no such file."""
        try:
            descriptor = os.open(self._path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            os.fchmod(descriptor, _PINNED_MODE if pinned else _PLAIN_MODE)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return True

    def scan(self) -> Iterator[FileFacts]:
        """All files that have a block's name."""
        for first in range(256):
            try:
                with os.scandir(self.directory / f"{first:02x}") as entries:
                    for entry in entries:
                        facts = _facts(first, entry)
                        if facts is not None:
                            yield facts
            except FileNotFoundError:
                continue

    def _path(self, digest: bytes) -> Path:
        text = digest.hex()
        return self.directory / text[:2] / text[2:]

    def _take_place(self) -> None:
        """A directory whose lock this process holds for as long as it lives."""
        place = self.directory / _WRITING / secrets.token_hex(8)
        place.mkdir(mode=0o700)
        descriptor = os.open(place / _ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PLAIN_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        if self._alive is not None:
            os.close(self._alive)
        self._writing, self._alive = place, descriptor

    def _sweep(self) -> None:
        """Process ids would not do: writers in containers have others. A lock ends with its process, however that ends."""
        for place in (self.directory / _WRITING).iterdir():
            if place != self._writing and not _has_owner(place):
                log.info("removed what a killed process was writing", place=place.name)
                shutil.rmtree(place, ignore_errors=True)


def _has_owner(place: Path) -> bool:
    try:
        descriptor = os.open(place / _ALIVE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _facts(first: int, entry: os.DirEntry[str]) -> FileFacts | None:
    try:
        digest = bytes([first]) + bytes.fromhex(entry.name)
        found = entry.stat(follow_symlinks=False)
    except (ValueError, FileNotFoundError):
        return None
    if len(digest) != 32 or not stat.S_ISREG(found.st_mode):
        return None
    return FileFacts(digest, found.st_size, found.st_mtime, pinned=not found.st_mode & stat.S_IWUSR)


def _synchronise_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
