"""This user's sessions, whoever opened them: through their directories and their daemons.

A session that is opened here is a daemon of its own, as one of `edgellm session open`, and outlives the console. What a daemon
says and how it ends stands on disk, so that nothing waits for it here.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import structlog
import trio

from edgellm.console import views
from edgellm.console.membership import Place
from edgellm.console.problems import problem_of
from edgellm.console.session_views import differs, session_of
from edgellm.console.sources import Busy, Conflict, Event, NotKnown
from edgellm.errors import EdgeError, SessionError
from edgellm.sessions import client
from edgellm.sessions.client import SessionState
from edgellm.sessions.daemon_order import Order
from edgellm.sessions.registry import Registry, SessionFiles, SessionRecord, read_record, write_record
from edgellm.sessions.story import read_journal

log = structlog.get_logger(__name__)
T = TypeVar("T")

MAX_WATCHERS = 64
MAX_STARTING = 8
MAX_SWAPS = 4
MAX_CALLS_AT_ONCE = 16
POLL_S = 0.3
STATE_S = 1.0
MAX_PROGRESS_BYTES = 1 << 20
MAX_WAITING = 64
Swapper = Callable[[Registry, str, str, Callable[[client.ProgressLine], None]], None]


@dataclass
class _Swap:
    model: str
    is_over: bool = False
    failure: views.Problem | None = None


class SessionsHere:
    """`edgellm.console.sources.SessionSource`."""

    def __init__(
        self,
        registry: Registry,
        nursery: trio.Nursery,
        place: Callable[[], Awaitable[Place]],
        latency_s: Callable[[str], float | None],
        *,
        isolation: str,
        swap: Swapper = client.swap_session,
    ) -> None:
        """`place`: which swarm new sessions join."""
        self._registry = registry
        self._nursery = nursery
        self._place = place
        self._latency_s = latency_s
        self._isolation = isolation
        self._swapper = swap
        self._swaps: dict[str, _Swap] = {}
        self._daemons: dict[str, tuple[subprocess.Popen[bytes], str]] = {}
        """Those that were started here, and for which model, until they have ended."""
        self._lock = threading.Lock()
        self._limiter = trio.CapacityLimiter(MAX_CALLS_AT_ONCE)
        self._watchers = 0
        self._starting = 0

    async def all(self) -> tuple[views.Session, ...]:
        def look() -> list[views.Session]:
            self._reap()
            return [self._shown(state) for state in client.list_sessions(self._registry)]

        return tuple(await self._in_thread(look))

    async def one(self, name: str) -> views.Session:
        return await self._in_thread(self._look, name)

    async def open(self, wanted: views.NewSession) -> views.Session:
        if self._starting >= MAX_STARTING:
            raise Busy(f"{MAX_STARTING} sessions are being opened already")
        self._starting += 1
        try:
            place = await self._place()
            return await self._in_thread(self._launch, wanted, place)
        finally:
            self._starting -= 1

    async def close(self, name: str) -> None:
        await self._in_thread(self._look, name)
        await self._in_thread(client.close_session, self._registry, name)
        self._swaps.pop(name, None)
        await self._in_thread(self._reap)

    async def swap(self, name: str, model: str) -> views.Session:
        session = await self.one(name)
        if session.state != "ready":
            raise Conflict(f"session {name!r} is {session.state}", remedy="swap its model when it is ready")
        if sum(not swap.is_over for swap in self._swaps.values()) >= MAX_SWAPS:
            raise Busy(f"{MAX_SWAPS} sessions are being swapped already")
        swap = self._swaps[name] = _Swap(model)
        self._nursery.start_soon(self._run_swap, name, swap)
        return await self.one(name)

    @asynccontextmanager
    async def watch(self, name: str) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
        """Raises NotKnown, Busy where too many watch."""
        await self.one(name)
        if self._watchers >= MAX_WATCHERS:
            raise Busy(f"{MAX_WATCHERS} pages watch sessions already", remedy="close some of them")
        self._watchers += 1
        sending, receiving = trio.open_memory_channel[Event](MAX_WAITING)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow, name, sending)
                yield receiving
                nursery.cancel_scope.cancel()
        finally:
            self._watchers -= 1

    async def _follow(self, name: str, sending: trio.MemorySendChannel[Event]) -> None:
        files = self._registry.files(name)
        shown: views.Session | None = None
        told = 0
        looked_at = -STATE_S
        async with sending:
            while shown is None or shown.state != "failed":
                lines = (await self._in_thread(read_progress, files))[told:]
                told += len(lines)
                for line in lines:
                    await sending.send(Event("progress", _line(line)))
                if lines or trio.current_time() - looked_at >= STATE_S:
                    looked_at = trio.current_time()
                    try:
                        now = await self.one(name)
                    except NotKnown:
                        break
                    if shown is None or differs(shown, now):
                        shown = now
                        await sending.send(Event("state", now))
                if shown is None or shown.state != "failed":
                    await trio.sleep(POLL_S)
            if shown is not None:
                await sending.send(Event("end", shown))

    # --- in threads

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        # Left behind when the console ends: what a thread waits for may be its own process.
        return await trio.to_thread.run_sync(work, *arguments, abandon_on_cancel=True, limiter=self._limiter)

    def _look(self, name: str) -> views.Session:
        self._reap()
        try:
            state = client.session_state(self._registry, name)
        except SessionError as error:
            raise NotKnown(str(error), remedy=error.remedy) from error
        return self._shown(state)

    def _shown(self, state: SessionState) -> views.Session:
        last = None
        if state.description is None or state.description.state != "ready":
            with suppress(SessionError):
                last = next(iter(read_progress(self._registry.files(state.name))[-1:]), None)
        session = session_of(state, last, self._latency_s)
        if not session.model and state.name in self._daemons:
            session = session.model_copy(update={"model": self._daemons[state.name][1]})
        swap = self._swaps.get(state.name)
        if swap is None or session.state != "ready":
            return session
        if swap.is_over:
            return session.model_copy(update={"swap_failure": swap.failure})
        # Asked for just now: its daemon has not begun.
        return session.model_copy(update={"state": "swapping", "swapping_to": swap.model})

    def _launch(self, wanted: views.NewSession, place: Place) -> views.Session:
        try:
            name, files = self._registry.reserve(wanted.name)
        except SessionError as error:
            raise Conflict(str(error), remedy="choose another name, or leave it out") from error
        order = Order(
            name=name,
            model=wanted.model,
            directory=str(files.directory),
            bootstrap=place.bootstrap,
            mdns=place.mdns,
            swarm=place.swarm,
            idle_s=wanted.idle_s,
            isolation=self._isolation,
            tensor_parallel=wanted.tp,
            pipeline_parallel=wanted.pp,
            peers=tuple(wanted.peers),
            context=wanted.context,
            sequences=wanted.sequences,
            kv_scope="session" if wanted.kv_share else None,
            journal=str(files.journal),
        )
        daemon = client.launch_session(self._registry, order, files)
        with self._lock:
            self._daemons[name] = daemon, wanted.model
        return views.Session(name=name, model=wanted.model, state="starting", detail="its daemon starts")

    def _reap(self) -> None:
        """Takes note of daemons that have ended; one that had no chance to say why is given a reason."""
        with self._lock:
            for name, (daemon, model) in tuple(self._daemons.items()):
                code = daemon.poll()
                if code is None:
                    continue
                del self._daemons[name]
                try:
                    files = self._registry.files(name)
                except SessionError:
                    continue  # it has tidied up
                record = read_record(files)
                if code == 0 or (record and record.failure) or read_journal(files.journal) is not None:
                    continue  # it has tidied up, said why, or can be recovered
                error = client.failure_of(None, f"the session's daemon ended with status {code}", files)
                blank = record or SessionRecord(name, model, daemon.pid, 0.0)
                failed = msgspec.structs.replace(
                    blank, state="failed", failure=str(error), remedy=error.remedy, exit_code=1
                )
                write_record(files, failed)

    async def _run_swap(self, name: str, swap: _Swap) -> None:
        try:
            # Left behind when the console ends: the daemon goes on with it.
            await trio.to_thread.run_sync(
                self._swapper,
                self._registry,
                name,
                swap.model,
                # It stands with what was said at bring-up.
                lambda line: None,
                abandon_on_cancel=True,
                limiter=trio.CapacityLimiter(1),
            )
        except EdgeError as error:
            swap.failure = problem_of(error)
        finally:
            swap.is_over = True


def read_progress(files: SessionFiles) -> list[client.ProgressLine]:
    """What was said while the session was brought up, complete lines alone; nothing where there is none."""
    try:
        with files.progress.open("rb") as file:
            said = file.read(MAX_PROGRESS_BYTES)
    except OSError:
        return []
    whole = (line for line in said.splitlines(keepends=True) if line.endswith(b"\n"))
    return [msgspec.json.decode(line, type=client.ProgressLine) for line in whole]


def _line(line: client.ProgressLine) -> views.ProgressLine:
    return views.ProgressLine(at=line.at, who=line.who, phase=line.phase, detail=line.detail)
