"""Hosts that are started from the console: each an `edgellm host` with a home of its own, and gone with the console."""

from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import structlog
import trio

from edgellm.console import views
from edgellm.console.host_lines import GRACE_S, command_of, ended, noted
from edgellm.console.membership import Place
from edgellm.console.sources import Busy, NotKnown, NotOffered, Unavailable
from edgellm.errors import DiskFull, UsageError
from edgellm.hosting.control import SOCKET, Order, Pause, Resume, tell

log = structlog.get_logger(__name__)

MAX_HOSTS = 16
END_S = 20.0
"""What a host gets for ending, after its grace; then it is killed."""
POLL_S = 0.1
KEPT_LINES = 300
MAX_LINE = 500
_NOT_FOR_CHILDREN = (
    "FORCE_COLOR",
    "TTY_COMPATIBLE",
    "EDGELLM_BOOTSTRAP",
    "EDGELLM_CONSOLE_TOKEN",
    "EDGELLM_API_KEY",
)
"""What would colour lines that are read here, lead elsewhere, or is nobody else's business."""


@dataclass
class _Running:
    host: views.Host
    process: subprocess.Popen[bytes]
    lock: int
    """A file descriptor that keeps its home for it."""
    home: Path
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    over: trio.Event = field(default_factory=trio.Event)


class LocalHosts:
    """`edgellm.console.sources.HostSource`; made by `open_local_hosts`."""

    offered = True

    def __init__(
        self,
        nursery: trio.Nursery,
        homes: Path,
        place: Callable[[], Awaitable[Place]],
        isolation: str,
        program: Sequence[str],
    ) -> None:
        self._nursery = nursery
        self._homes = homes
        self._place = place
        self._isolation = isolation
        self._program = tuple(program)
        self._running: dict[str, _Running] = {}
        self._starting = 0
        self._hurried = trio.Event()

    def all(self) -> tuple[views.Host, ...]:
        return tuple(running.host for running in self._running.values())

    def one(self, host: str) -> views.Host:
        return self._find(host).host

    def log(self, host: str) -> tuple[str, ...]:
        return tuple(self._find(host).lines)

    def of_peer(self, peer: str) -> str | None:
        """The id of the host that is that peer."""
        return next((host.id for host in self.all() if host.peer == peer and host.state != "ended"), None)

    async def start(self, wanted: views.NewHost) -> views.Host:
        """Raises Busy, UsageError for a directory that is not there, Unavailable without a swarm."""
        _require_model(wanted.model)
        if len(self._running) + self._starting >= MAX_HOSTS:
            raise Busy(
                f"{MAX_HOSTS} hosts were started from here already", remedy="take some out of the list"
            )
        self._starting += 1
        try:
            place = await self._place()
            if place.swarm:
                raise Unavailable(
                    "hosts of a private swarm are not started from here: each is a member of its own",
                    remedy=f"in a terminal: edgellm host --swarm {place.swarm} --model {wanted.model}",
                )
        finally:
            self._starting -= 1
        number, lock = self._reserve()
        host = views.Host(
            id=secrets.token_hex(3),
            name=wanted.name or f"{os.uname().nodename.split('.')[0][:48]}-{number}",
            model=wanted.model,
            memory_bytes=wanted.memory_bytes,
            state="starting",
            started_at=time.time(),
        )
        words = [*self._program, "host", *command_of(wanted, host.name, place, self._isolation)]
        try:
            # Not in one of trio's threads: the kernel would end it with that thread.
            process = subprocess.Popen(
                [sys.executable, "-m", "edgellm.console.tethered", str(os.getpid()), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_environment(self._homes / str(number)),
                # Ctrl-C in the terminal is for the console, which ends its hosts in order.
                start_new_session=True,
            )
        except OSError:
            os.close(lock)
            raise
        running = self._running[host.id] = _Running(host, process, lock, self._homes / str(number))
        self._nursery.start_soon(self._attend, running)
        return host

    async def stop(self, host: str) -> None:
        running = self._find(host)
        await self._end(running)
        self._running.pop(host, None)

    async def pause(self, host: str) -> views.Host:
        return await self._order(host, Pause(), "paused")

    async def resume(self, host: str) -> views.Host:
        return await self._order(host, Resume(), "lends again")

    async def _order(self, host: str, order: Order, line: str) -> views.Host:
        running = self._find(host)
        await trio.to_thread.run_sync(tell, running.home / "run" / SOCKET, order)
        # It says so itself, too; whoever asked is told at once.
        running.host = noted(running.host, line)
        return running.host

    async def stop_all(self) -> None:
        """All at once; returns when they have ended."""
        async with trio.open_nursery() as nursery:
            for running in self._running.values():
                nursery.start_soon(self._end, running)

    def hurry(self) -> None:
        """Those that are being stopped are killed."""
        self._hurried.set()

    async def _end(self, running: _Running) -> None:
        if running.process.poll() is None:
            running.host = running.host.model_copy(update={"state": "stopping", "detail": "is asked to end"})
            running.process.terminate()
        deadline = trio.current_time() + GRACE_S + END_S
        while not running.over.is_set() and trio.current_time() < deadline and not self._hurried.is_set():
            await trio.sleep(POLL_S)
        if running.process.poll() is None:
            running.process.kill()
        await running.over.wait()

    async def _attend(self, running: _Running) -> None:
        """Listens to a host and reaps it; to its end, which `stop_all` brings about when the console ends."""
        process = running.process
        assert process.stderr is not None
        try:
            with trio.CancelScope(shield=True):
                await self._hear_out(running, process.stderr)
            running.host = ended(running.host, process.returncode)
        finally:
            os.close(running.lock)
            running.over.set()

    async def _hear_out(self, running: _Running, stderr: IO[bytes]) -> None:
        async with trio.lowlevel.FdStream(os.dup(stderr.fileno())) as said, trio.open_nursery() as nursery:
            stderr.close()
            nursery.start_soon(self._listen, running, said)
            while running.process.poll() is None:
                await trio.sleep(POLL_S)
            # What it wrote last; a child that it left behind may hold the pipe open for ever.
            nursery.cancel_scope.deadline = trio.current_time() + 1.0

    async def _listen(self, running: _Running, said: trio.lowlevel.FdStream) -> None:
        rest = b""
        async for data in said:
            # Progress bars go back to the beginning of their line.
            *whole, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            rest = rest[-MAX_LINE:]
            for one in whole:
                line = one.decode(errors="replace").strip()[:MAX_LINE]
                if line:
                    running.lines.append(line)
                    running.host = noted(running.host, line)

    def _find(self, host: str) -> _Running:
        try:
            return self._running[host]
        except KeyError:
            raise NotKnown(f"no host {host!r} was started from here") from None

    def _reserve(self) -> tuple[int, int]:
        """A home that no other host uses, kept between starts for the sake of what was measured and hashed; its number."""
        for number in range(1, 10 * MAX_HOSTS):
            home = self._homes / str(number)
            try:
                home.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                raise DiskFull(f"{home} cannot be used: {error.strerror}") from error
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return number, lock
            os.close(lock)
        raise Busy("too many hosts run from consoles of this user")


@asynccontextmanager
async def open_local_hosts(
    homes: Path,
    place: Callable[[], Awaitable[Place]],
    *,
    isolation: str,
    program: Sequence[str] = (sys.executable, "-m", "edgellm"),
) -> AsyncIterator[LocalHosts]:
    """Hosts below `homes`, all ended when the context is. `place` tells which swarm they join."""
    async with trio.open_nursery() as nursery:
        hosts = LocalHosts(nursery, homes, place, isolation, program)
        try:
            yield hosts
        finally:
            with trio.CancelScope(shield=True):
                await hosts.stop_all()


class NoHosts:
    """Where none can be started (`edgellm.console.sources.HostSource`)."""

    offered = False

    def __init__(self, why: NotOffered) -> None:
        self._why = why

    def all(self) -> tuple[views.Host, ...]:
        return ()

    def one(self, host: str) -> views.Host:
        raise NotKnown(f"no host {host!r} was started from here")

    async def start(self, wanted: views.NewHost) -> views.Host:
        raise self._why

    async def stop(self, host: str) -> None:
        self.one(host)

    async def pause(self, host: str) -> views.Host:
        return self.one(host)

    async def resume(self, host: str) -> views.Host:
        return self.one(host)

    def log(self, host: str) -> tuple[str, ...]:
        raise NotKnown(f"no host {host!r} was started from here")


def _require_model(said: str) -> None:
    """Raises UsageError for what can only be a directory, and is none."""
    if said.startswith(("~", "/", ".")) and not Path(said).expanduser().is_dir():
        raise UsageError(
            f"there is no directory {said}", remedy="give one with config.json and *.safetensors in it"
        )


def _environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}
    return {**kept, "EDGELLM_HOME": str(home)}
