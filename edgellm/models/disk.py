"""A full disk as one clear line, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgellm.errors import ModelError

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def disk_errors(doing: str, directory: Path) -> Iterator[None]:
    """Turns an OSError of the body into a ModelError: `doing` (e.g. "storing the tokenizer") failed in `directory`, why."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(doing, directory) from error
        raise ModelError(
            f"{doing} failed: {error.strerror or error} ({error.filename or directory})",
            remedy=f"check that {directory} is there and yours to write",
        ) from error


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or one that caused it, is a full disk or an exhausted quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full(doing: str, directory: Path, detail: str = "") -> ModelError:
    return ModelError(
        f"{doing} failed: the disk that holds {directory} is too full{detail}",
        remedy="free some space there, or choose another place (EDGELLM_HOME, HF_HOME)",
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `path` so that readers see the old content or the new, never half. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
