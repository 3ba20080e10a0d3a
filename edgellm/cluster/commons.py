"""Places that every member of a cluster must find under one path, for members without a sandbox.

In a cell these are `/model` and `/tmp`. Without one the engine's workers would be told the head's paths, and what engines
leave in `/tmp` would stay; so each member has a directory that is named after the cluster and goes with it.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import CellError


@dataclass(frozen=True, slots=True)
class Commons:
    model: Path
    temporary: Path
    """Short: Ray puts Unix sockets some 80 characters below it."""

    def environment(self) -> dict[str, str]:
        """Where programs that respect it put their temporary files."""
        place = str(self.temporary)
        return {"HOME": place, "TMPDIR": place, "RAY_TMPDIR": place}


@contextmanager
def open_commons(cluster: str, model_directory: Path, root: Path = Path("/tmp")) -> Iterator[Commons]:
    """The common places of `cluster` on this machine; gone when the context ends.

    A host and a head in one container share them: a model directory with weights takes the place of one without, and the first
    to leave takes all of it away, which ends the cluster anyway. Raises CellError when somebody else holds the place.
    """
    directory = root / f"edgellm-{cluster[:8]}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid != os.getuid():
        raise CellError(
            f"{directory} belongs to somebody else", remedy="ask again: the name is new for each cluster"
        )
    commons = Commons(directory / "model", directory)
    try:
        if not commons.model.is_dir() or any(model_directory.glob("*.safetensors")):
            new = directory / f".{secrets.token_hex(4)}"
            new.symlink_to(model_directory.resolve())
            new.replace(commons.model)
        yield commons
    finally:
        shutil.rmtree(directory, ignore_errors=True)
