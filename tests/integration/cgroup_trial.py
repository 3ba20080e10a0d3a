"""Cells in cgroups, where some can be made: `python -m tests.integration.cgroup_trial` prints what it saw as JSON.

A program of its own, because it must be alone in its cgroup, and pytest's is shared with whoever started it.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import trio

from edgellm.cells.cell import open_cell
from edgellm.cells.cgroup import find_place
from edgellm.cells.spec import Limits
from tests.integration.cells import event_named, python_cell

MEMORY_BOMB = """
held = []
tell(event="up")
while True:
    held.append(bytearray(b"x" * (8 << 20)))
"""
FORK_BOMB = """
tell(event="up")
refused = 0
while refused < 50:
    try:
        if os.fork() == 0:
            time.sleep(3600)
    except BlockingIOError:
        refused += 1
tell(event="refused", running=len([name for name in os.listdir("/proc") if name.isdigit()]))
time.sleep(3600)
"""
SPINNERS = """
for _ in range(4):
    if os.fork() == 0:
        while True:
            pass
tell(event="up")
time.sleep(3600)
"""


async def _trial(directory: Path) -> dict[str, object]:
    place = find_place()
    said: dict[str, object] = {"why_not": place.why_not}
    if place.directory is None:
        return said
    settings = {"fabric": "direct", "address": None}

    def cells() -> list[str]:
        assert place.directory is not None
        return [path.name for path in place.directory.glob("edgellm-cell-*")]

    spec = python_cell(MEMORY_BOMB, directory / "m", limits=Limits(memory_bytes=128 << 20), **settings)
    async with open_cell(spec) as cell:
        await event_named(cell, "up")
        said["cells"] = len(cells())
        with trio.fail_after(60):
            await cell.wait()
        said["memory"] = cell.broken_limit
    spec = python_cell(FORK_BOMB, directory / "f", limits=Limits(processes=64), **settings)
    async with open_cell(spec) as cell:
        await event_named(cell, "up")
        said["forks"] = (await event_named(cell, "refused"))["running"]
        with trio.fail_after(30):
            await cell.wait()
        said["forks_ended"] = cell.broken_limit
    spec = python_cell(SPINNERS, directory / "c", limits=Limits(cpus=1), **settings)
    async with open_cell(spec) as cell:
        await event_named(cell, "up")
        assert place.directory is not None
        file = place.directory / cells()[0] / "cpu.stat"
        before, begun = int(file.read_text().split()[1]), time.monotonic()
        await trio.sleep(1)
        said["cpus"] = (int(file.read_text().split()[1]) - before) / 1e6 / (time.monotonic() - begun)
    said["left"] = cells()
    return said


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(trio.run(_trial, Path(name))), flush=True)
