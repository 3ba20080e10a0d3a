"""Starts a cell, owns its process, and kills it. The only module of this package that the node calls."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import trio

from edgellm.cells.bubblewrap import bwrap_arguments
from edgellm.cells.diagnosis import explain_failure, missing_requirement
from edgellm.cells.filesystem import HostView, host_view
from edgellm.cells.spec import CellSpec
from edgellm.errors import unwrapped

# The cell is hostile: what it may make the node hold.
_MAX_LINE_BYTES = 64 << 10
_MAX_EVENTS = 256
_TAIL_BYTES = 64 << 10
_READ_BYTES = 64 << 10

_READY_TIMEOUT_S = 30.0
_GRACE_S = 5.0
_DRAIN_TIMEOUT_S = 2.0

Event = dict[str, object]


class Cell:
    """A running cell. Made by `open_cell`; dies with its context, and with the node."""

    def __init__(self, process: subprocess.Popen[bytes], sandboxed: bool) -> None:
        self._process = process
        self._sandboxed = sandboxed
        self._first_process: int | None = None
        self._gone = trio.Event()
        self._drained = trio.Event()
        self._ready = trio.Event()
        self._first_event: Event | None = None
        self._tail = bytearray()
        self._send_events, self._events = trio.open_memory_channel[Event](_MAX_EVENTS)

    @property
    def events(self) -> trio.MemoryReceiveChannel[Event]:
        """JSON objects that the engine printed, one a line; ends with the cell.

        Nobody may rely on what is in them. Nothing is lost: who does not read them makes the engine wait.
        """
        return self._events

    async def wait(self) -> int:
        """Wait until everything in the cell is gone; the engine's exit status, 128 + n for signal n."""
        await self._gone.wait()
        with trio.move_on_after(_DRAIN_TIMEOUT_S):
            await self._drained.wait()
        status = self._process.returncode
        return status if status >= 0 else 128 - status

    async def kill(self) -> None:
        """Kill everything in the cell and wait until it is gone."""
        with trio.CancelScope(shield=True):
            if self._process.returncode is None:
                if not self._sandboxed:
                    await self._end_without_namespace()
                self._process.kill()
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
                    said = await status.receive_some(4096)
                    with contextlib.suppress(ValueError, LookupError, ProcessLookupError):
                        first_process = os.pidfd_open(json.loads(said.splitlines()[0])["child-pid"])
                for pidfd in (os.pidfd_open(self._process.pid), first_process):
                    if pidfd is not None:
                        try:
                            await trio.lowlevel.wait_readable(pidfd)
                        finally:
                            trio.lowlevel.notify_closing(pidfd)
                            os.close(pidfd)
                self._process.wait()
            finally:
                self._gone.set()
                if status is not None:
                    await status.aclose()

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
            self._ready.set()

    async def _handle_line(self, line: bytes) -> None:
        event = None
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
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
    process, status_fd = _start(spec, bwrap)
    cell = Cell(process, spec.isolation == "bwrap")
    with unwrapped():
        async with trio.open_nursery() as nursery:
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


def _start(spec: CellSpec, bwrap: str | None) -> tuple[subprocess.Popen[bytes], int | None]:
    """The process and the descriptor on which bwrap reports. Not `trio.lowlevel.open_process`: that starts from
    a worker thread, and the death signal would come when that thread has been idle for a while."""
    environment = dict(spec.environment)
    if spec.isolation == "none" or bwrap is None:
        process = subprocess.Popen(
            _init_command(spec),
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
        file_fds = _files_in_memory(view, inherited)
        arguments = bwrap_arguments(
            spec, view, _init_command(spec), status_fd=status_written, file_fds=file_fds
        )
        process = subprocess.Popen(
            [bwrap, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(status_written, *file_fds.values()),
            # A terminal's Ctrl-C is for the node, which then decides when its cells end.
            start_new_session=True,
        )
    return process, status


def _files_in_memory(view: HostView, owner: contextlib.ExitStack) -> dict[Path, int]:
    fds = {}
    for path, content in view.files:
        fd = os.memfd_create(path.name)
        owner.callback(os.close, fd)
        os.write(fd, content.encode())
        os.lseek(fd, 0, os.SEEK_SET)
        fds[path] = fd
    return fds


def _init_command(spec: CellSpec) -> tuple[str, ...]:
    words = [sys.executable, "-I", "-m", "edgellm.cells.init", "--fabric", spec.fabric]
    words += ["--runtime", str(spec.runtime_path), "--nice", str(spec.nice), "--subnet", spec.subnet]
    if spec.address is not None:
        words += ["--address", spec.address]
    if spec.isolation == "none":
        words += ["--unsandboxed"]
    return (*words, "--", *spec.argv)


def _take(pipe: object) -> int:
    """The descriptor of a pipe of `Popen`, out of its buffered file's hands."""
    fd = os.dup(pipe.fileno())  # type: ignore[attr-defined]
    pipe.close()  # type: ignore[attr-defined]
    return fd
