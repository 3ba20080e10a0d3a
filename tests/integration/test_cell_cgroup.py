"""Cells in cgroups of their own, where this machine lets some be made; elsewhere, why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trio

from edgellm.cells.cgroup import NODE_LEAF, find_place, settings
from edgellm.cells.spec import Limits
from tests.integration.cgroup_trial import FORK_BOMB


async def test_limits_by_the_kernel() -> None:
    """Nothing is skipped where no cgroup can be made: `test_cell_attacks` then shows the same bombs stopped otherwise."""
    assert "os.fork" in FORK_BOMB
    with trio.fail_after(120):
        done = await trio.run_process(
            [sys.executable, "-m", "tests.integration.cgroup_trial"], capture_stdout=True
        )
    said = json.loads(done.stdout)
    if said["why_not"]:
        assert set(said) == {"why_not"}
        return
    assert said["cells"] == 1
    assert "out of memory in its cell" in said["memory"]
    assert said["forks"] <= 64
    assert "too many processes in its cell" in said["forks_ended"]
    assert 0.5 < said["cpus"] < 1.2
    assert said["left"] == []


def hierarchy(root: Path, *, own: str, controllers: str = "cpu io memory pids", inner: bool = True) -> Path:
    """A /proc and a cgroup2 mount like the kernel's, with this process in `own`; returns the /proc."""
    mounted = root / "cgroup"
    directory = mounted / own
    directory.mkdir(parents=True)
    for name, content in (
        ("cgroup.controllers", controllers),
        ("cgroup.procs", ""),
        ("cgroup.subtree_control", ""),
    ):
        (directory / name).write_text(content)
    if inner:
        (directory / "cgroup.events").write_text("populated 1")
    process = root / "proc" / "self"
    process.mkdir(parents=True)
    (process / "cgroup").write_text(f"1:name=systemd:/x\n0::/outer/{own}\n")
    (process / "mountinfo").write_text(
        f"24 1 0:22 / /proc rw - proc proc rw\n31 24 0:27 /outer {mounted} rw,nosuid - cgroup2 cgroup rw\n"
    )
    return root / "proc"


def test_a_place_is_found(tmp_path: Path) -> None:
    proc = hierarchy(tmp_path, own="scope")
    place = find_place(proc=proc)
    assert place.directory == tmp_path / "cgroup" / "scope"
    assert {"memory", "pids"} <= place.controllers


def test_a_second_program_of_this_node_finds_the_same_place(tmp_path: Path) -> None:
    proc = hierarchy(tmp_path, own="scope")
    (tmp_path / "proc/self/cgroup").write_text(f"0::/outer/scope/{NODE_LEAF}\n")
    assert find_place(proc=proc).directory == tmp_path / "cgroup" / "scope"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"controllers": "cpu hugetlb"}, "no memory and no pids controller"),
        ({"controllers": "cpu memory"}, "no pids controller"),
    ],
)
def test_no_place_without_controllers(tmp_path: Path, changes: dict[str, str], why: str) -> None:
    place = find_place(proc=hierarchy(tmp_path, own="scope", **changes))  # type: ignore[arg-type]
    assert place.directory is None
    assert why in place.why_not


def test_no_place_among_strangers(tmp_path: Path) -> None:
    proc = hierarchy(tmp_path, own="scope")
    (tmp_path / "cgroup/scope/cgroup.procs").write_text("7\n")
    (proc / "7").mkdir()
    (proc / "7" / "stat").write_text("7 (a shell) S 1 7 7 0")
    assert "1 processes besides this one" in find_place(proc=proc).why_not
    for text in ("", "0::/elsewhere\n"):
        (tmp_path / "proc/self/cgroup").write_text(text)
        assert "no cgroup v2" in find_place(proc=proc).why_not


def test_settings() -> None:
    written = settings(Limits(memory_bytes=1 << 30, processes=100, cpus=3))
    assert written["memory.max"] == str(1 << 30)
    assert (written["memory.swap.max"], written["memory.oom.group"]) == ("0", "1")
    assert (written["pids.max"], written["cpu.max"]) == ("100", "300000 100000")
    assert not {"memory.max", "cpu.max"} & set(settings(Limits()))
