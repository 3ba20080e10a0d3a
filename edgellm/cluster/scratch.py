"""A directory for each running member of a cluster. It goes with its owner; one whose owner was killed goes with the next
node that starts here.

An owner holds a lock on its directory, which the kernel releases when the owner dies, however that happens.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
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
        shutil.rmtree(directory, ignore_errors=True)
        os.close(owned)


def sweep(parent: Path) -> None:
    """Removes the scratch directories in `parent` whose owners are dead."""
    with _locked(parent):
        for directory in parent.iterdir():
            if _NAME.fullmatch(directory.name) and directory.is_dir():
                with suppress(FileNotFoundError, BlockingIOError), _locked(directory, fcntl.LOCK_NB):
                    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _locked(directory: Path, flags: int = 0) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(descriptor)
