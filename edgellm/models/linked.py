"""Model directories that hold their files themselves.

A cell sees the model directory and nothing around it, so a symbolic link that leads out of it is dangling there. The
snapshots in Hugging Face's cache consist of such links.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from edgellm.errors import ModelError
from edgellm.models.disk import disk_errors
from edgellm.models.files import light_paths, weight_paths


def without_links(directory: Path, root: Path) -> Path:
    """`directory` itself, or, when files of its model are links that lead out of it, a directory below `root` with hard
    links to the same files. That takes no space.

    Raises ModelError when the directory is no complete model, or `root` is on another file system.
    """
    directory = directory.resolve()
    files = {path.name: path.resolve() for path in [*light_paths(directory), *weight_paths(directory)]}
    if all(target.parent == directory for target in files.values()):
        return directory
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    linked = root / f"{directory.name}-{name}"
    if _holds(linked, files):
        return linked
    with disk_errors(f"linking the files of {directory}", root):
        root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
        try:
            for path, target in files.items():
                _link(target, partial / path)
            shutil.rmtree(linked, ignore_errors=True)
            partial.rename(linked)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return linked


def _holds(linked: Path, files: dict[str, Path]) -> bool:
    try:
        return {path.name for path in linked.iterdir()} == set(files) and all(
            (linked / name).samefile(target) for name, target in files.items()
        )
    except OSError:
        return False


def _link(target: Path, path: Path) -> None:
    try:
        path.hardlink_to(target)
    except OSError as error:
        raise ModelError(
            f"{target} cannot be linked to {path.parent}: {error.strerror}",
            remedy="put EDGELLM_HOME on the disk that holds the model, or give --model a directory without symbolic "
            "links (hf download MODEL --local-dir DIRECTORY)",
        ) from error
