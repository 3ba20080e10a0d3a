"""A control group (cgroup v2) for each cell, where this node may make some: what a cell takes together is then bounded by the
kernel itself, and all of it dies at once.

A node may where its own cgroup was delegated to it (a systemd scope or service with `Delegate=yes`, a container) and holds
nobody else's processes, and as root of the machine at the root of the hierarchy. In a delegated one the node moves into a
leaf of its own first: the kernel puts processes into leaves only. On machines that still have the pids controller of cgroup v1,
root gets at least that: the kernel exempts root from RLIMIT_NPROC.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from edgellm.cells.spec import Limits

NODE_LEAF = "edgellm-node"
_CELL_PREFIX = "edgellm-cell-"
_ABANDONED_S = 60.0
_NEEDED = frozenset(("memory", "pids"))
_CPU_PERIOD_US = 100_000
_CPU_WEIGHT = 50  # half of what everybody else has
_GONE_TIMEOUT_S = 2.0
_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Place:
    """Where cgroups of cells can be made; or `why_not`, for the machine's owner."""

    directory: Path | None
    why_not: str = ""
    controllers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CellGroup:
    """The cgroup of one cell. Made by `open_group`."""

    directory: Path
    bounds_memory: bool = True

    @property
    def processes_file(self) -> Path:
        """Whoever writes 0 there becomes its member, with all its future children."""
        return self.directory / "cgroup.procs"

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has killed the cell, or a part of it, for want of memory."""
        with contextlib.suppress(OSError, ValueError):
            events = dict(line.split() for line in _read(self.directory / "memory.events").splitlines())
            return int(events.get("oom_kill", 0)) + int(events.get("oom_group_kill", 0)) > 0
        return False

    def ran_out_of_processes(self) -> bool:
        """Whether the kernel has refused the cell a process or thread, as it had all that it may have."""
        with contextlib.suppress(OSError, ValueError):
            events = dict(line.split() for line in _read(self.directory / "pids.events").splitlines())
            return int(events.get("max", 0)) > 0
        return False

    def kill(self) -> None:
        """Kill all in it (before Linux 5.14 the cell's own ways must do)."""
        with contextlib.suppress(OSError):
            (self.directory / "cgroup.kill").write_text("1", encoding="ascii")


def find_place(process: str = "self", proc: Path = Path("/proc")) -> Place:
    """Where this process may make cgroups for its cells. Changes nothing."""
    try:
        own = _own_directory(proc / process)
    except (OSError, ValueError):
        return Place(None, "this machine has no cgroup v2 hierarchy that shows here")
    if own.name == NODE_LEAF:
        own = own.parent
    try:
        controllers = frozenset(_read(own / "cgroup.controllers").split())
    except OSError as error:
        return Place(None, f"{own} cannot be read: {error.strerror}")
    if missing := _NEEDED - controllers:
        return Place(None, f"{own} has no {' and no '.join(sorted(missing))} controller")
    if not all(
        os.access(path, os.W_OK) for path in (own, own / "cgroup.procs", own / "cgroup.subtree_control")
    ):
        return Place(None, f"{own} is not this user's")
    if not _is_root(own) and (strangers := _strangers(own, proc)):
        return Place(None, f"{own} holds {strangers} processes besides this one")
    return Place(own, controllers=controllers)


@asynccontextmanager
async def open_group(limits: Limits) -> AsyncIterator[CellGroup | None]:
    """A new cgroup with `limits`, gone with all in it when the context ends; None where none can be made."""
    group = _make(limits) or _make_for_processes(limits)
    if group is None:
        yield None
        return
    try:
        yield group
    finally:
        group.kill()
        await _remove(group.directory)


def settings(limits: Limits) -> dict[str, str]:
    """What to write into which file of a cell's cgroup. Pure."""
    written = {"pids.max": str(limits.processes), "memory.oom.group": "1"}
    if limits.memory_bytes is not None:
        written |= {"memory.max": str(limits.memory_bytes), "memory.swap.max": "0"}
    written["cpu.weight"] = str(_CPU_WEIGHT)
    if limits.cpus is not None:
        written["cpu.max"] = f"{limits.cpus * _CPU_PERIOD_US} {_CPU_PERIOD_US}"
    return written


# Files that some kernels lack: swap without CONFIG_SWAP, the whole of the CPU's where only memory and pids are delegated.
_OPTIONAL = frozenset(("memory.swap.max", "cpu.weight", "cpu.max"))


def _make(limits: Limits) -> CellGroup | None:
    place = find_place()
    if place.directory is None:
        return None
    group = None
    try:
        _prepare(place.directory, place.controllers)
        directory = place.directory / f"{_CELL_PREFIX}{secrets.token_hex(4)}"
        directory.mkdir()
        group = CellGroup(directory)
        for name, value in settings(limits).items():
            if name not in _OPTIONAL or (directory / name).exists():
                (directory / name).write_text(value, encoding="ascii")
    except OSError:
        if group is not None:
            with contextlib.suppress(OSError):
                group.directory.rmdir()
        return None
    return group


def _make_for_processes(limits: Limits, process: Path = Path("/proc/self")) -> CellGroup | None:
    """By cgroup v1, which lets processes and children be in one directory."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (line.split(":", 2) for line in _read(process / "cgroup").splitlines())
        path = next(own for _, controllers, own in lines if "pids" in controllers.split(","))
        place = _mounted(process, path, kind="cgroup", option="pids")
        _sweep(place)
        directory = place / f"{_CELL_PREFIX}{secrets.token_hex(4)}"
        directory.mkdir()
        try:
            (directory / "pids.max").write_text(str(limits.processes), encoding="ascii")
        except OSError:
            directory.rmdir()
            raise
        return CellGroup(directory, bounds_memory=False)
    return None


def _sweep(place: Path) -> None:
    """Removes what nodes that were killed have left, but nothing young: another node's new cell has no process yet."""
    for left in place.glob(f"{_CELL_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                left.rmdir()  # the kernel refuses while there are processes in it


def _prepare(place: Path, controllers: frozenset[str]) -> None:
    """Makes room for cells in `place`, and removes what nodes that were killed have left there. Raises OSError."""
    _sweep(place)
    if not _is_root(place):
        leaf = place / NODE_LEAF
        leaf.mkdir(exist_ok=True)
        for pid in _read(place / "cgroup.procs").split():
            with contextlib.suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(pid, encoding="ascii")
    enabled = _read(place / "cgroup.subtree_control").split()
    for name in ("memory", "pids", "cpu"):
        if name in controllers and name not in enabled:
            (place / "cgroup.subtree_control").write_text(f"+{name}", encoding="ascii")


async def _remove(directory: Path) -> None:
    with trio.move_on_after(_GONE_TIMEOUT_S, shield=True):
        while True:
            try:
                directory.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                await trio.sleep(_PAUSE_S)  # its last processes are dead and not yet gone


def _own_directory(process: Path) -> Path:
    """Raises OSError or ValueError where there is no cgroup v2."""
    path = next((line[3:] for line in _read(process / "cgroup").splitlines() if line.startswith("0::")), "")
    return _mounted(process, path, kind="cgroup2")


def _mounted(process: Path, path: str, *, kind: str, option: str = "") -> Path:
    """Where the cgroup `path` of a hierarchy shows. Raises OSError or ValueError where it does not."""
    for line in _read(process / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields = after.split()
        if fields[0] == kind and (not option or option in fields[-1].split(",")):
            root, point = before.split()[3:5]
            return Path(_unescaped(point)) / Path(path).relative_to(_unescaped(root))
    raise ValueError(f"no {kind} mount")


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _is_root(directory: Path) -> bool:
    """Of the machine's hierarchy: the only cgroup without events, and with processes beside children."""
    return not (directory / "cgroup.events").exists()


def _strangers(directory: Path, proc: Path) -> int:
    """How many processes in it are neither this one nor descend from it."""
    return sum(not _descends(int(pid), proc) for pid in _read(directory / "cgroup.procs").split())


def _descends(pid: int, proc: Path) -> bool:
    own = os.getpid()
    while pid > 1 and pid != own:
        try:
            pid = int(_read(proc / str(pid) / "stat").rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            return True  # gone meanwhile
    return pid == own


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace")
