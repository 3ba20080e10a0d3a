"""Faults of hosts, as they really happen: each is done to a host that lends, and undone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.chaos_schedule import Kind
from tests.system.lan import Lan
from tests.system.machine import Machine
from tests.system.swarm import Host

Undo = Callable[[], None]

CGROUPS = Path("/sys/fs/cgroup")
OOM_BYTES = 1 << 20
CRAWL_SHARE = 0.01
"""Of one core, that a host crawls with."""
DISK_BYTES = 128 << 20


def ranks(host: Host) -> list[int]:
    """The engine's processes in the host's cells that compute."""
    return [pid for pid in host.process.tree() if "RayWorkerProc" in _command(pid)]


def lends(host: Host) -> bool:
    """Whether it runs a cell, computing or standing by."""
    return any("bwrap" in _command(pid) for pid in host.process.tree())


def give_disk(machine: Machine) -> None:
    """Puts what the machine's user may write to on disks of its own, which can be filled. To be called once, before use."""
    for target in _disks(machine):
        script = f"""
            new=$(mktemp -d /dev/shm/disk-XXXXXX)
            mount -t tmpfs -o size={DISK_BYTES},mode=$(stat -c %a {target}) disk "$new"
            cp -a {target}/. "$new"
            mount --move "$new" {target}
            rmdir "$new"
        """
        machine.namespaces.command("sh", "-euc", script)


def _disks(machine: Machine) -> list[str]:
    # What a machine sees of the others' /tmp lies in its own.
    temporary = [] if machine.visible else ["/tmp"]
    return [str(machine.home), str(machine.runtime), *temporary]


def inject(kind: Kind, host: Host, lan: Lan, others: Sequence[Machine]) -> Undo:
    """Does it at once; what it gives undoes it, as far as the host does not have to be started again.

    `others`: to whom packets are lost. Raises RuntimeError where it cannot be done.
    """
    machine = host.machine
    match kind:
        case "host killed":
            host.process.kill()
        case "rank killed":
            _send(ranks(host), signal.SIGKILL)
        case "host frozen":
            host.process.freeze()
            return host.process.thaw
        case "rank frozen":
            frozen = ranks(host)
            _send(frozen, signal.SIGSTOP)
            return lambda: _send(frozen, signal.SIGCONT, all_=False)
        case "cable pulled":
            lan.unplug(machine)
            return lambda: lan.plug(machine)
        case "packets dropped":
            for other in others:
                lan.cut(machine, other)
            return lambda: _heal(lan, machine, others)
        case "disk full":
            return _filled(machine)
        case "out of memory":
            found = ranks(host)
            if not found:
                raise RuntimeError(f"{host.name} computes nothing")
            return _Group("memory", f"edgellm-chaos-{machine.name}", {"memory": str(OOM_BYTES)}).join(found)
        case "slow to a crawl":
            return _slowed(host)
        case "host's Ctrl-C":
            host.process.interrupt()
        case "host's owner":
            host.process.terminate()
    return lambda: None


def _heal(lan: Lan, machine: Machine, others: Sequence[Machine]) -> None:
    for other in others:
        lan.heal(machine, other)


def _send(pids: Sequence[int], number: signal.Signals, *, all_: bool = True) -> None:
    """Raises RuntimeError where there is nobody to send it to, unless some may have ended."""
    if not pids:
        raise RuntimeError("the host computes nothing")
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            if all_:
                raise RuntimeError("the host's rank has just ended") from None


def _filled(machine: Machine) -> Undo:
    """Not a byte more goes onto its disks."""
    fillers = [f"{disk}/filler" for disk in _disks(machine)]
    fill = "dd if=/dev/zero bs=$size of=$file oflag=append conv=notrunc"
    script = f"for file; do for size in 1M 4k; do {fill}; done; done"
    machine.namespaces.command("sh", "-c", f"({script}) 2>/dev/null; true", "sh", *fillers)
    return lambda: _emptied(machine, fillers)


def _emptied(machine: Machine, fillers: Sequence[str]) -> None:
    machine.namespaces.command("rm", "-f", *fillers)


def _slowed(host: Host) -> Undo:
    """The host and all its cells have a hundredth of a core together."""
    return _Group("cpu", f"edgellm-chaos-{host.name}", {"cpu": str(CRAWL_SHARE)}).join(host.process.tree())


class _Group:
    """A control group of either version; gone when what joined it has been let go."""

    def __init__(self, controller: str, name: str, limits: dict[str, str]) -> None:
        """Raises RuntimeError where groups cannot be made."""
        self._is_old = (CGROUPS / controller).is_dir()
        self._root = CGROUPS / controller if self._is_old else CGROUPS
        # Where hosts were started; they go back there.
        self._home = self._root / _own_group(controller if self._is_old else "").lstrip("/")
        self._path = self._root / name
        self._stop = threading.Event()
        try:
            if not self._is_old:
                (CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
            self._path.mkdir(exist_ok=True)
            for what, value in limits.items():
                self._limit(what, value)
        except OSError as error:
            raise RuntimeError(f"no control groups here: {error}") from error

    def _limit(self, what: str, value: str) -> None:
        if what == "memory":
            (self._path / ("memory.limit_in_bytes" if self._is_old else "memory.max")).write_text(value)
            return
        quota, period = round(float(value) * 1_000_000), 1_000_000
        if self._is_old:
            (self._path / "cpu.cfs_period_us").write_text(str(period))
            (self._path / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (self._path / "cpu.max").write_text(f"{quota} {period}")

    def join(self, pids: Sequence[int] | set[int]) -> Undo:
        for pid in pids:
            with suppress(ProcessLookupError, OSError):
                (self._path / "cgroup.procs").write_text(str(pid))
        return self._leave

    def _leave(self) -> None:
        # What was begun meanwhile is in it, too.
        for _ in range(100):
            for pid in (self._path / "cgroup.procs").read_text().split():
                with suppress(OSError):
                    (self._home / "cgroup.procs").write_text(pid)
            try:
                self._path.rmdir()
            except OSError:
                if self._stop.wait(0.05):
                    return
                continue
            return
        raise RuntimeError(f"{self._path} cannot be removed")


def _own_group(controller: str) -> str:
    """This process's, of the old version's `controller`, or of the new one's only hierarchy ("")."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    raise RuntimeError(f"this process has no group of {controller or 'the new kind'}")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
