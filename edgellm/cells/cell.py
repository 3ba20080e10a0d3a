"""Starts a cell, owns its process, and kills it. The only module of this package that the node calls."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import trio

from edgellm.cells.bubblewrap import bwrap_arguments
from edgellm.cells.cgroup import CellGroup, open_group
from edgellm.cells.diagnosis import explain_failure, missing_requirement
from edgellm.cells.filesystem import host_view
from edgellm.cells.seccomp import seccomp_filter
from edgellm.cells.spec import CellSpec
from edgellm.cells.watch import LOOK_S, open_watch, too_many_processes
from edgellm.errors import unwrapped

# The cell is hostile: what it may make the node hold.
_MAX_LINE_BYTES = 64 << 10
_MAX_EVENTS = 64
_TAIL_BYTES = 64 << 10
_READ_BYTES = 64 << 10
# Of each of its outputs: reading an endless one shall not take the node's core from its other leases.
_READ_BYTES_S = 8 << 20
_REST = 3.0  # times as long as understanding its events took

_READY_TIMEOUT_S = 30.0
_GRACE_S = 5.0
_DRAIN_TIMEOUT_S = 2.0

Event = dict[str, object]


class Cell:
    """A running cell. Made by `open_cell`; dies with its context, and with the node."""

    def __init__(
        self, spec: CellSpec, process: subprocess.Popen[bytes], group: CellGroup | None = None
    ) -> None:
        self._spec = spec
        self._process = process
        self._group = group
        self._first_process: int | None = None
        self._broken_limit = ""
        self._killed = False
        self._first_known = trio.Event()
        self._gone = trio.Event()
        self._drained = trio.Event()
        self._ready = trio.Event()
        self._first_event: Event | None = None
        self._understood_s = 0.0
        self._tail = bytearray()
        self._send_events, self._events = trio.open_memory_channel[Event](_MAX_EVENTS)

    @property
    def events(self) -> trio.MemoryReceiveChannel[Event]:
        """JSON objects that the engine printed, one a line; ends with the cell.

        Nobody may rely on what is in them. Nothing is lost: who does not read them makes the engine wait.
        """
        return self._events

    @property
    def broken_limit(self) -> str:
        """Why it had to end, for whoever leased it, when it took more than it may; else empty."""
        return self._broken_limit

    async def wait(self) -> int:
        """Wait until everything in the cell is gone; the engine's exit status, 128 + n for signal n."""
        await self._gone.wait()
        with trio.move_on_after(_DRAIN_TIMEOUT_S):
            await self._drained.wait()
        status = self._process.returncode
        return status if status >= 0 else 128 - status

    async def kill(self) -> None:
        """Kill everything in the cell and wait until it is gone."""
        self._killed = True
        with trio.CancelScope(shield=True):
            if self._process.returncode is None:
                if self._spec.isolation == "none":
                    await self._end_without_namespace()
                self._process.kill()
                if self._group is not None:
                    self._group.kill()
            await self._gone.wait()

    def stderr_tail(self) -> str:
        """The last 64 KiB of what the cell wrote to stderr, and to stdout where it was no event."""
        return self._tail.decode("utf-8", "replace")

    async def _end_without_namespace(self) -> None:
        """The cell's first program, parent of all that was orphaned, kills them; then what it left, if it hangs."""
        descendants: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            descendants = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGTERM)
        with trio.move_on_after(_GRACE_S):
            await self._gone.wait()
            return
        for descendant in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                descendant.kill()

    async def _watch(self, status_fd: int | None) -> None:
        """Learn the first process of the cell's PID namespace, and wait until it and its parent are gone.

        The kernel lets that process go only after every other process of the namespace.
        """
        status = first_process = None
        # Whoever cancels kills, in `open_cell`: the process is still to be waited for, or it stays as a zombie.
        with trio.CancelScope(shield=True):
            try:
                if status_fd is not None:
                    # Kept open: bwrap reports the exit status there in the end, and would die of SIGPIPE.
                    status = trio.lowlevel.FdStream(status_fd)
                    said = b""
                    # bwrap writes a line in several pieces.
                    while b"\n" not in said and (piece := await status.receive_some(4096)):
                        said += piece
                    with contextlib.suppress(ValueError, LookupError, ProcessLookupError):
                        self._first_process = int(json.loads(said.splitlines()[0])["child-pid"])
                        first_process = os.pidfd_open(self._first_process)
                self._first_known.set()
                for pidfd in (os.pidfd_open(self._process.pid), first_process):
                    if pidfd is not None:
                        try:
                            await trio.lowlevel.wait_readable(pidfd)
                        finally:
                            trio.lowlevel.notify_closing(pidfd)
                            os.close(pidfd)
                self._process.wait()
            finally:
                self._first_known.set()
                if self._group is not None and not self._broken_limit and self._group.ran_out_of_memory():
                    self._broken_limit = _out_of_memory(self._spec)
                self._gone.set()
                if status is not None:
                    await status.aclose()

    async def _keep_to_limits(self) -> None:
        """Ends the cell when it takes more than it may, and says why in `broken_limit`."""
        await self._first_known.wait()
        try:
            if self._first_process is None and self._spec.isolation == "bwrap":
                raise ProcessLookupError("bwrap did not say which process it began with")
            bounded = self._group is not None and self._group.bounds_memory
            with open_watch(self._spec, self._first_process, bounded=bounded) as watch:
                # Not in this thread: a cell that starves its machine must not hold the node up by that, too.
                while (broken := self._refused() or await trio.to_thread.run_sync(watch.excess)) is None:
                    await trio.sleep(LOOK_S)
        except OSError as error:
            if self._gone.is_set() or self._killed:
                return
            broken = f"its cell cannot be looked at: {error}"
        if not self._killed and self._process.poll() is None:
            self._broken_limit = broken
            await self.kill()

    def _refused(self) -> str | None:
        """A cell full of processes is ended, though the kernel gives it no more: those would go on taking the machine's CPU."""
        full = self._group is not None and self._group.ran_out_of_processes()
        return too_many_processes(self._spec.limits) if full else None

    async def _read_events(self, fd: int) -> None:
        async with trio.lowlevel.FdStream(fd) as stdout, self._send_events:
            pending = b""
            while received := await stdout.receive_some(_READ_BYTES):
                *lines, pending = (pending + received).split(b"\n")
                for line in lines:
                    await self._handle_line(line)
                if len(pending) > _MAX_LINE_BYTES:
                    self._keep(pending)
                    pending = b""
                await trio.sleep(max(len(received) / _READ_BYTES_S, _REST * self._understood_s))
                self._understood_s = 0.0
            self._ready.set()

    async def _handle_line(self, line: bytes) -> None:
        event = None
        begun = time.perf_counter()
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
        self._understood_s += time.perf_counter() - begun
        if not isinstance(event, dict):
            self._keep(line + b"\n")
        elif not self._ready.is_set():
            self._first_event = event
            self._ready.set()
        else:
            with contextlib.suppress(trio.BrokenResourceError):
                await self._send_events.send(event)

    async def _read_stderr(self, fd: int) -> None:
        async with trio.lowlevel.FdStream(fd) as stderr:
            while received := await stderr.receive_some(_READ_BYTES):
                self._keep(received)
                await trio.sleep(len(received) / _READ_BYTES_S)
        self._drained.set()

    def _keep(self, said: bytes) -> None:
        self._tail += said
        del self._tail[:-_TAIL_BYTES]


@asynccontextmanager
async def open_cell(spec: CellSpec) -> AsyncIterator[Cell]:
    """Make the cell and start its engine; kill it and all in it when the context ends.

    Yields when the cell's network and fences stand and the engine's program runs. With fabric "overlay", the
    carrier's `overlay.sock` must be in the runtime directory by then, else the cell can reach nobody.
    Call from the main thread: the cell dies with the thread that started it. Raises `CellError`.
    """
    bwrap = shutil.which("bwrap")
    if (error := missing_requirement(spec, bwrap)) is not None:
        raise error
    with unwrapped():
        async with open_group(spec.limits) as group, trio.open_nursery() as nursery:
            process, status_fd = _start(spec, bwrap, group)
            cell = Cell(spec, process, group)
            nursery.start_soon(cell._watch, status_fd)
            try:
                nursery.start_soon(cell._read_events, _take(process.stdout))
                nursery.start_soon(cell._read_stderr, _take(process.stderr))
                with trio.move_on_after(_READY_TIMEOUT_S):
                    await cell._ready.wait()
                event = cell._first_event
                if event is None or event.get("event") != "cell_ready":
                    await cell.kill()
                    await cell.wait()
                    raise explain_failure(spec, cell.stderr_tail(), event)
                nursery.start_soon(cell._keep_to_limits)
                yield cell
            finally:
                await cell.kill()
                nursery.cancel_scope.cancel()


def default_environment() -> dict[str, str]:
    """What every program in a cell expects in its environment, wherever the node runs."""
    system = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    return {
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "USER": "root",
        "LANG": "C.UTF-8",
        "PATH": f"{Path(sys.prefix) / 'bin'}:{system}",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _start(
    spec: CellSpec, bwrap: str | None, group: CellGroup | None
) -> tuple[subprocess.Popen[bytes], int | None]:
    """The process and the descriptor on which bwrap reports. Not `trio.lowlevel.open_process`: that starts from
    a worker thread, and the death signal would come when that thread has been idle for a while."""
    environment = dict(spec.environment)
    if spec.isolation == "none" or bwrap is None:
        process = subprocess.Popen(
            _inside(group, _init_command(spec)),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        return process, None
    view = host_view(with_devices=bool(spec.devices))
    status, status_written = os.pipe2(os.O_CLOEXEC)
    with contextlib.ExitStack() as inherited:
        inherited.callback(os.close, status_written)
        file_fds = {
            path: _file_in_memory(path.name, content.encode(), inherited) for path, content in view.files
        }
        program = seccomp_filter(platform.machine(), sets_up=True)
        seccomp_fd = _file_in_memory("seccomp", program, inherited)
        arguments = bwrap_arguments(
            spec,
            view,
            _init_command(spec),
            status_fd=status_written,
            seccomp_fd=seccomp_fd,
            file_fds=file_fds,
        )
        process = subprocess.Popen(
            _inside(group, (bwrap, *arguments)),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(status_written, seccomp_fd, *file_fds.values()),
            # A terminal's Ctrl-C is for the node, which then decides when its cells end.
            start_new_session=True,
        )
    return process, status


def _inside(group: CellGroup | None, command: tuple[str, ...]) -> tuple[str, ...]:
    """`command`, as a member of `group` from its first instruction on."""
    if group is None:
        return command
    return ("/bin/sh", "-c", 'echo 0 >"$0" && exec "$@"', str(group.processes_file), *command)


def _file_in_memory(name: str, content: bytes, owner: contextlib.ExitStack) -> int:
    fd = os.memfd_create(name)
    owner.callback(os.close, fd)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _init_command(spec: CellSpec) -> tuple[str, ...]:
    words = [sys.executable, "-I", "-m", "edgellm.cells.init", "--fabric", spec.fabric]
    words += ["--runtime", str(spec.runtime_path), "--nice", str(spec.nice), "--subnet", spec.subnet]
    if spec.address is not None:
        words += ["--address", spec.address]
    words += ["--file-bytes", str(max(spec.tmp_bytes, spec.shm_bytes))]
    if spec.isolation == "none":
        words += ["--unsandboxed"]
    else:
        words += ["--processes", str(spec.limits.processes)]
    return (*words, "--", *spec.argv)


def _out_of_memory(spec: CellSpec) -> str:
    if spec.limits.memory_bytes is None:
        return "out of memory: the machine of its cell has none left"
    return f"out of memory in its cell: its lease allows {spec.limits.memory_bytes / (1 << 30):.2f} GiB"


def _take(pipe: object) -> int:
    """The descriptor of a pipe of `Popen`, out of its buffered file's hands."""
    fd = os.dup(pipe.fileno())  # type: ignore[attr-defined]
    pipe.close()  # type: ignore[attr-defined]
    return fd
