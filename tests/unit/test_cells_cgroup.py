"""Directories of cells' cgroups that killed nodes have left."""

from __future__ import annotations

import os
import time
from pathlib import Path

from edgellm.cells.cgroup import _ABANDONED_S, _CELL_PREFIX, _sweep


def test_what_is_old_and_empty_goes_and_what_another_node_just_made_stays(tmp_path: Path) -> None:
    old, young, other = (
        tmp_path / name for name in (f"{_CELL_PREFIX}old", f"{_CELL_PREFIX}young", "user.slice")
    )
    for directory in (old, young, other):
        directory.mkdir()
    long_ago = time.time() - _ABANDONED_S - 1
    os.utime(old, (long_ago, long_ago))
    os.utime(other, (long_ago, long_ago))
    _sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, other.name]
