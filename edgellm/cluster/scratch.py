"""A directory for each running member of a cluster. It goes with its owner; one whose owner was killed goes with the next
node that starts here.

An owner holds a lock on its directory, which the kernel releases when the owner dies, however that happens.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = re.compile(r"[0-9a-f]{8}")


@contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """A new directory in `parent`, mode 0700; gone, with all in it, when the context ends."""
    # Short, because Unix sockets in it must stay under 108 bytes; not tempfile's, which would be longer.
    directory = parent / secrets.token_hex(4)
    with _locked(parent):
        directory.mkdir(mode=0o700)
        owned = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(owned, fcntl.LOCK_EX)
    try:
        yield directory
    finally:
        remove_tree(directory)
        os.close(owned)


def sweep(parent: Path) -> None:
    """Removes the scratch directories in `parent` whose owners are dead."""
    with _locked(parent):
        for directory in parent.iterdir():
            if _NAME.fullmatch(directory.name) and directory.is_dir():
                with suppress(FileNotFoundError, BlockingIOError), _locked(directory, fcntl.LOCK_NB):
                    remove_tree(directory)


def remove_tree(directory: Path) -> None:
    """Removes a directory that a cell, dead by now, has filled as it liked: without end, without permission, with links.

    What lies deep is brought up before it is removed, so that no depth needs a long path, many descriptors or recursion.
    """
    with suppress(OSError):
        directory.chmod(0o700)
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            while names := _names(top):
                for name in names:
                    _remove(name, top)
        finally:
            os.close(top)
        directory.rmdir()


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


def _remove(name: str, top: int) -> None:
    if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=top)
        return
    os.chmod(name, 0o700, dir_fd=top)
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        for entry in _names(inner):
            if stat.S_ISDIR(os.stat(entry, dir_fd=inner, follow_symlinks=False).st_mode):
                os.chmod(entry, 0o700, dir_fd=inner)  # to be moved it must be writable
                os.rename(entry, secrets.token_hex(16), src_dir_fd=inner, dst_dir_fd=top)
            else:
                os.unlink(entry, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)


@contextmanager
def _locked(directory: Path, flags: int = 0) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(descriptor)
