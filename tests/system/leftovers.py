"""What a test left on its machines: all that is there after it and was not there before.

Read from outside, through the machine's first process, so that looking leaves no trace. A machine has its process
ids, sockets, shared memory, mounts and /tmp to itself, so whatever is new on it came from the test.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from tests.system.machine import Machine
from tests.system.namespaces import command

# State, caches and configuration may stay in a home; what belongs to one running process may not.
_FLEETING = ("*.sock", "*.pid", "*.tmp", "*.temp", "*.part", "*.partial", "*.incomplete")
_TCP_LISTEN = "0A"


@dataclass(frozen=True, order=True)
class Trace:
    """One thing on a machine. Two are the same when machine, kind and key are."""

    machine: str
    kind: str
    key: str
    detail: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.machine}: {self.kind} {self.key} {self.detail}".rstrip()


@dataclass(frozen=True)
class Snapshot:
    """All that is on some machines at one moment."""

    traces: frozenset[Trace] = frozenset()

    def __or__(self, other: Snapshot) -> Snapshot:
        return Snapshot(self.traces | other.traces)

    @classmethod
    def take(cls, machines: Iterable[Machine]) -> Snapshot:
        """Of the machines that are switched on; a machine without power holds nothing."""
        on = [machine for machine in machines if machine.namespaces.alive]
        return cls(frozenset(trace for machine in on for look in _LOOKS for trace in look(machine)))


def difference(before: Snapshot, after: Snapshot) -> tuple[Trace, ...]:
    """What is there after and was not before, sorted."""
    return tuple(sorted(after.traces - before.traces))


def assert_nothing_left(before: Snapshot, machines: Sequence[Machine], patience_s: float = 5.0) -> None:
    """Raises AssertionError with a list when something is new since `before` and does not go in time."""
    deadline = time.monotonic() + patience_s
    while left := difference(before, Snapshot.take(machines)):
        if time.monotonic() > deadline:
            lines = "\n".join(f"  {trace}" for trace in left)
            raise AssertionError(f"left behind, {patience_s:g} s after the end:\n{lines}")
        time.sleep(0.1)


def _processes(machine: Machine) -> Iterator[Trace]:
    for entry in machine.namespaces.inside("/proc").iterdir():
        if not entry.name.isdigit() or entry.name == "1":
            continue
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            arguments = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            name = arguments or (entry / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent, started = status[0], status[1], status[19]
        yield Trace(
            machine.name, "process", f"{entry.name}@{started}", f"[{state}, child of {parent}] {name[:300]}"
        )


def _sockets(machine: Machine) -> Iterator[Trace]:
    net = Path(f"/proc/{machine.namespaces.init}/net")
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in (net / protocol).read_text().splitlines()[1:]:
            fields = line.split()
            # Connections come and go with processes, or are the kernel's to finish; what waits for more is ours.
            if protocol.startswith("udp") or fields[3] == _TCP_LISTEN:
                yield Trace(
                    machine.name, "socket", f"{protocol} {fields[1]}", f"port {int(fields[1][-4:], 16)}"
                )
    for line in (net / "unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8:
            yield Trace(machine.name, "socket", f"unix {fields[7]}")


def _shared_memory(machine: Machine) -> Iterator[Trace]:
    yield from _files(machine, "shared memory", Path("/dev/shm"))
    for kind in ("shm", "sem", "msg"):
        table = command(
            "nsenter", f"--target={machine.namespaces.init}", "--ipc", "cat", f"/proc/sysvipc/{kind}"
        )
        for line in table.splitlines()[1:]:
            yield Trace(machine.name, f"System V {kind}", " ".join(line.split()[:2]))


def _temporary_files(machine: Machine) -> Iterator[Trace]:
    yield from _files(machine, "temporary file", Path("/tmp"))
    yield from _files(machine, "runtime file", machine.runtime)
    for trace in _files(machine, "file", machine.home):
        try:
            mode = machine.namespaces.inside(trace.key).lstat().st_mode
        except FileNotFoundError:
            continue
        fleeting = stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)
        if fleeting or any(fnmatch(trace.key, pattern) for pattern in _FLEETING):
            yield trace


def _files(machine: Machine, kind: str, top: Path) -> Iterator[Trace]:
    hidden = {str(machine.namespaces.inside(path)) for path in machine.visible}
    outside = str(machine.namespaces.inside("/"))
    for directory, directories, files in os.walk(machine.namespaces.inside(top)):
        directories[:] = [name for name in directories if f"{directory}/{name}" not in hidden]
        for name in [*directories, *files]:
            yield Trace(machine.name, kind, "/" + f"{directory}/{name}".removeprefix(outside).lstrip("/"))


def _mounts(machine: Machine) -> Iterator[Trace]:
    for line in Path(f"/proc/{machine.namespaces.init}/mountinfo").read_text().splitlines():
        fields = line.split()
        yield Trace(machine.name, "mount", f"{fields[0]} {fields[4]}")


def _interfaces(machine: Machine) -> Iterator[Trace]:
    for line in Path(f"/proc/{machine.namespaces.init}/net/dev").read_text().splitlines()[2:]:
        yield Trace(machine.name, "network interface", line.split(":")[0].strip())


_LOOKS: tuple[Callable[[Machine], Iterator[Trace]], ...] = (
    _processes,
    _sockets,
    _shared_memory,
    _temporary_files,
    _mounts,
    _interfaces,
)
