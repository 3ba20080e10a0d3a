"""When a cell takes more than it may, and how much lies in a directory that a cell fills as it likes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgellm.cells.spec import Limits
from edgellm.cells.watch import MAX_RUNTIME_BYTES, MAX_RUNTIME_FILES, Use, directory_use, excess
from edgellm.cluster.limits import HEAD_BYTES, cell_limits

GIB = 1 << 30
LIMITS = Limits(memory_bytes=2 * GIB, processes=100)


def judged(use: Use, free_bytes: int = 8 * GIB, limits: Limits = LIMITS) -> str | None:
    return excess(use, limits, free_bytes=free_bytes, total_bytes=16 * GIB)


def test_what_is_within_limits_goes_on() -> None:
    assert judged(Use(2 * GIB, 100, MAX_RUNTIME_BYTES, MAX_RUNTIME_FILES)) is None
    assert judged(Use(100 * GIB, 1), limits=Limits()) is None


@pytest.mark.parametrize(
    ("use", "free_bytes", "why"),
    [
        (
            Use(2 * GIB + 1, 1),
            8 * GIB,
            r"out of memory in its cell: it held 2.00 GiB, its lease allows 2.00 GiB",
        ),
        (Use(1, 101), 8 * GIB, "too many processes"),
        (Use(1, 1, MAX_RUNTIME_BYTES + 1, 1), 8 * GIB, "filled the directory"),
        (Use(1, 1, 1, MAX_RUNTIME_FILES + 1), 8 * GIB, "filled the directory"),
        (Use(1, 1), 100 << 20, "machine of its cell has none left"),
    ],
)
def test_each_excess(use: Use, free_bytes: int, why: str) -> None:
    assert why in (judged(use, free_bytes) or "")


def test_a_directory_is_counted_without_following_anything(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(1 << 20))
    mine = tmp_path / "mine"
    (mine / "inner").mkdir(parents=True)
    (mine / "inner" / "file").write_bytes(b"x" * 8192)
    (mine / "link").symlink_to(big)
    (mine / "loop").symlink_to(mine)
    os.mkfifo(mine / "pipe")
    size_bytes, files = directory_use(mine, 100)
    assert files == 5
    assert 8192 <= size_bytes < 64 << 10
    assert directory_use(mine, 3)[1] == 4
    before = len(list(Path("/proc/self/fd").iterdir()))
    deep = mine
    for _ in range(80):
        deep = deep / "d"
        deep.mkdir()
    assert directory_use(mine, 40)[1] == 41
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_cells_memory_is_its_leases_and_the_engines() -> None:
    def memory_bytes(kind: str, *, is_head: bool = False) -> int:
        limits = cell_limits(
            kind,  # type: ignore[arg-type]
            devices=2,
            memory_bytes=3 * GIB,
            threads=2,
            usable_threads=8,
            is_head=is_head,
        )
        assert limits.cpus == 2
        assert limits.processes == 256 + 2 * 128 + 8 * 64
        assert limits.memory_bytes is not None
        return limits.memory_bytes

    assert memory_bytes("cpu") == 7 * GIB
    assert memory_bytes("cpu", is_head=True) == HEAD_BYTES
    assert memory_bytes("cuda") > 8 * GIB
    every = cell_limits("cpu", devices=1, memory_bytes=GIB, threads=8, usable_threads=8, is_head=False)
    assert (every.cpus, every.memory_bytes) == (None, 2 * GIB)
    ready = cell_limits(
        "cpu", devices=1, memory_bytes=GIB, threads=8, usable_threads=8, is_head=False, standby=True
    )
    assert ready.memory_bytes == 3 * GIB
