"""What a cell takes of its machine, seen from the node, and whether that is more than it may.

Where the kernel keeps a cell to its limits (`edgellm.cells.cgroup`), only what no cgroup counts is looked at here.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgellm.cells.spec import CellSpec, Limits

LOOK_S = 0.5
"""How often; a cell may take more than it may for so long."""
MAX_RUNTIME_BYTES = 64 << 20
MAX_RUNTIME_FILES = 64
"""What an engine leaves in its runtime directory: sockets."""
LEAST_FREE_BYTES = 256 << 20
LEAST_FREE_SHARE = 0.01
"""Of the machine's memory. Below it cells give way: memory can be taken in ways that no process shows."""
FEW_PROCESSES = 256
"""Of so many the kernel is asked which memory they share. An engine has fewer; a fork bomb would make the answer late."""
_TMPFS = ("tmp", "dev/shm")
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Use:
    memory_bytes: int = 0
    processes: int = 0
    """Or threads, where there are more of them."""
    runtime_bytes: int = 0
    runtime_files: int = 0


def excess(use: Use, limits: Limits, *, free_bytes: int, total_bytes: int) -> str | None:
    """Why a cell must end, for whoever leased it, or None. Pure. `free_bytes` are those of the machine's memory."""
    if limits.memory_bytes is not None and use.memory_bytes > limits.memory_bytes:
        return (
            f"out of memory in its cell: it held {use.memory_bytes / _GIB:.2f} GiB, "
            f"its lease allows {limits.memory_bytes / _GIB:.2f} GiB"
        )
    if use.processes > limits.processes:
        return too_many_processes(limits)
    if use.runtime_bytes > MAX_RUNTIME_BYTES or use.runtime_files > MAX_RUNTIME_FILES:
        return "its cell filled the directory that holds its sockets"
    if free_bytes < max(LEAST_FREE_BYTES, LEAST_FREE_SHARE * total_bytes):
        return "out of memory: the machine of its cell has none left"
    return None


def too_many_processes(limits: Limits) -> str:
    return f"too many processes in its cell: more than {limits.processes}"


class Watch:
    """Looks at one cell. Made by `open_watch`."""

    def __init__(self, spec: CellSpec, proc: int | None, memory: tuple[int, ...]) -> None:
        self._spec = spec
        self._proc, self._memory = proc, memory

    def excess(self) -> str | None:
        """As the function of the same name, for what the cell takes now."""
        total_bytes, free_bytes = _machine_memory() if self._proc is not None else (0, 1 << 62)
        return excess(self._use(), self._spec.limits, free_bytes=free_bytes, total_bytes=total_bytes)

    def _use(self) -> Use:
        memory_bytes = processes = 0
        if self._proc is not None:
            memory_bytes, processes = self._processes(self._proc)
        runtime_bytes = runtime_files = 0
        if self._spec.writes_runtime:
            runtime_bytes, runtime_files = directory_use(self._spec.runtime_directory, MAX_RUNTIME_FILES)
        return Use(memory_bytes, processes, runtime_bytes, runtime_files)

    def _processes(self, proc: int) -> tuple[int, int]:
        pids = [name for name in os.listdir(proc) if name.isdecimal()]
        if len(pids) > self._spec.limits.processes:
            return 0, len(pids)  # reading of each would take its time
        private = threads = shared = 0
        limit_bytes = self._spec.limits.memory_bytes
        for pid in pids:
            with contextlib.suppress(OSError):
                seen = _status(proc, pid)
                threads += seen.get("Threads", 0)
                private += seen.get("RssAnon", 0)
                # Counted once, as several map the same; what lies in the cell's own tmpfs is counted there as well.
                shared = max(shared, seen.get("RssShmem", 0))
        files = 0
        for fd in self._memory:
            space = os.fstatvfs(fd)
            files += (space.f_blocks - space.f_bfree) * space.f_frsize
        is_over = limit_bytes is not None and private * 1024 + max(shared * 1024, files) > limit_bytes
        if is_over and len(pids) <= FEW_PROCESSES:
            # Pages that forked processes still have in common were counted in each. The kernel tells better, and slowly.
            private = sum(_own_share(proc, pid) for pid in pids)
        return private * 1024 + max(shared * 1024, files), max(threads, len(pids))


@contextmanager
def open_watch(spec: CellSpec, first_process: int | None, *, bounded: bool) -> Iterator[Watch]:
    """A watch over the cell whose PID namespace `first_process` began, before any code of its engine runs.

    `bounded` says that a cgroup keeps its memory and processes. Without a PID namespace (None) processes are not seen.
    """
    with contextlib.ExitStack() as stack:
        proc = None
        memory: list[int] = []
        if first_process is not None and not bounded:
            # What the cell can reach under these names is fixed: it can mount nothing, and its root is read-only.
            root = Path(f"/proc/{first_process}/root")
            for name in ("proc", *_TMPFS):
                fd = os.open(root / name, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, fd)
                memory.append(fd)
            proc, *memory = memory
        yield Watch(spec, proc, tuple(memory))


def directory_use(directory: Path, most_files: int) -> tuple[int, int]:
    """Bytes on disk and number of all that lies in `directory`; stops to count at more than `most_files`.

    Safe in a directory that a cell writes to meanwhile: follows no link, opens nothing but directories.
    """
    size_bytes = files = 0
    with contextlib.ExitStack() as stack:
        waiting = [os.open(directory, os.O_RDONLY | os.O_DIRECTORY)]
        stack.callback(_close_all, waiting)
        while waiting and files <= most_files:
            parent = waiting.pop()
            try:
                with os.scandir(parent) as entries:
                    for entry in entries:
                        files += 1
                        if files > most_files:
                            break
                        try:
                            info = os.stat(entry.name, dir_fd=parent, follow_symlinks=False)
                            size_bytes += info.st_blocks * 512
                            if stat.S_ISDIR(info.st_mode):
                                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                                waiting.append(os.open(entry.name, flags, dir_fd=parent))
                        except PermissionError:
                            return size_bytes, most_files + 1  # it hides something
                        except OSError:
                            continue
            finally:
                os.close(parent)
    return size_bytes, files


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _status(proc: int, pid: str) -> dict[str, int]:
    """Numbers that /proc tells of a process; memory in KiB."""
    fd = os.open(f"{pid}/status", os.O_RDONLY, dir_fd=proc)
    try:
        text = os.read(fd, 8192)
    finally:
        os.close(fd)
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(b":")
        if name in (b"Threads", b"RssAnon", b"RssShmem"):
            found[name.decode()] = int(value.split()[0])
    return found


def _own_share(proc: int, pid: str) -> int:
    """KiB of private memory, where several processes have a page a part of it each; all of it where that is not told."""
    try:
        fd = os.open(f"{pid}/smaps_rollup", os.O_RDONLY, dir_fd=proc)
        try:
            text = os.read(fd, 8192)
        finally:
            os.close(fd)
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(b"Pss_Anon:"))
    except (OSError, StopIteration):
        with contextlib.suppress(OSError):
            return _status(proc, pid).get("RssAnon", 0)
    return 0


def _machine_memory() -> tuple[int, int]:
    """Total and available bytes."""
    total = available = 0
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("MemTotal:"):
                total = int(line.split()[1])
            elif line.startswith("MemAvailable:"):
                available = int(line.split()[1])
                break
    return total * 1024, available * 1024
