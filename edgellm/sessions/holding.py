"""A session's clusters: brought up, put in each other's place, and let go.

A swap brings the new cluster up beside the old one, which answers meanwhile. Where hosts have no room for both, requests wait:
the old one finishes what it has and goes first; if the new one then does not come up, the old model's comes back. Either way no
connection is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import structlog
import trio

from edgellm.cluster.head import Progress
from edgellm.errors import (
    EdgeError,
    EngineError,
    HostLost,
    LeaseError,
    PlanError,
    SessionError,
    UsageError,
    unwrapped,
)
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import Requester, choose, opened_cluster
from edgellm.requester.discover import Lent
from edgellm.sessions.serving import Serving, Slot

log = structlog.get_logger(__name__)

DRAIN_S = 1800.0
"""How long a cluster that is replaced may finish its answers."""
MAX_NAMES = 8
"""Models of a session whose names its requests may say: the one that is served, and the last ones before it."""
END_S = 10.0
FREED_S = 15.0
"""How long hosts may take until their adverts say that they are free again."""
_RETRY_S = 0.5
_COUNT_S = 1.0
_POLL_S = 0.05


@dataclass
class Swap:
    """One that was asked for. `lines` is appended to by trio's thread and read by others; `ended` comes last."""

    model: str
    lines: list[Progress] = field(default_factory=list)
    failure: EdgeError | None = None
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Held:
    slot: Slot
    let_go: trio.Event
    gone: trio.Event


class Holding:
    """The clusters of one session."""

    def __init__(
        self,
        requester: Requester,
        wanted: Wanted,
        serving: Serving,
        nursery: trio.Nursery,
        tell: Callable[[Progress], None],
    ) -> None:
        self._requester, self._wanted, self._serving = requester, wanted, serving
        self._nursery = nursery
        self._tell = tell
        self._names: tuple[str, ...] = ()
        self._current: _Held | None = None

    async def begin(self, model: str) -> None:
        """The first cluster. Raises EdgeErrors where there is none."""
        self._take(await self._brought_up(model))

    async def swap(self, swap: Swap) -> None:
        """Does it, and tells `swap` how it went; raises only where nothing is left to answer with."""

        def tell(line: Progress) -> None:
            swap.lines.append(line)
            self._tell(line)

        try:
            with self._serving.swapping(swap.model):
                await self._swap(swap.model, tell)
        except EdgeError as error:
            swap.failure = error
            if self._current is None:
                raise
            log.warning("a swap failed", model=swap.model, error=str(error))
        except BaseException:
            swap.failure = SessionError("the session ended during the swap")
            raise
        finally:
            swap.ended.set()

    async def _swap(self, model: str, tell: Callable[[Progress], None]) -> None:
        old = self._current
        assert old is not None
        try:
            new = await self._brought_up(model, tell)
        except PlanError as error:
            # Else nothing is gained by letting the old one go.
            await self._require_room_without(old, model)
            tell(Progress("", "swap", f"no room for both: {error}"))
        else:
            await self._require_api(new, old)
            self._take(new)
            tell(
                Progress("", "swap", f"{model} answers; {old.slot.model} finishes {_answers(old.slot.users)}")
            )
            self._nursery.start_soon(self._let_go, old)
            return
        self._serving.hold()
        tell(Progress("", "swap", f"requests wait; {old.slot.model} finishes {_answers(old.slot.users)}"))
        self._current = None
        await self._let_go(old)
        try:
            new = await self._brought_up_once_free(model, tell)
            await self._require_api(new, old)
            self._take(new)
        except EdgeError as error:
            tell(Progress("", "swap", f"failed: {error}; {old.slot.model} comes back"))
            self._take(await self._brought_up_once_free(old.slot.model, tell))
            raise

    async def _require_room_without(self, old: _Held, model: str) -> None:
        """Raises PlanError where `model` could not be planned even on what the cluster `old` leaves."""
        plan = old.slot.opened.cluster.plan
        freed = {worker.peer: Lent(worker.devices, worker.memory_bytes) for worker in plan.workers}
        await choose(self._requester, model, None, self._wanted, lambda line: None, freed=freed)

    async def _require_api(self, new: _Held, old: _Held) -> None:
        """Raises EngineError, and lets `new` go, where it would answer fewer than `old` does."""
        if old.slot.opened.cluster.api_socket is None or new.slot.opened.cluster.api_socket is not None:
            return
        await self._let_go(new)
        raise EngineError(
            f"the engine of {new.slot.model} serves no API, so the session's endpoint would end",
            remedy="ask it by `edgellm ask`, without a session's endpoint",
        )

    async def end(self) -> None:
        """Lets the cluster in use go, in its own way; waits for it at most `END_S`."""
        held, self._current = self._current, None
        if held is not None:
            held.let_go.set()
            with trio.move_on_after(END_S):
                await held.gone.wait()

    async def _brought_up_once_free(self, model: str, tell: Callable[[Progress], None]) -> _Held:
        """As `_brought_up`, of hosts that were let go just now: a moment passes until all of them say so."""
        deadline = trio.current_time() + FREED_S
        while True:
            try:
                return await self._brought_up(model, tell)
            except (PlanError, LeaseError) as error:
                if trio.current_time() > deadline or isinstance(error, HostLost):
                    raise
                await trio.sleep(_RETRY_S)

    def _take(self, held: _Held) -> None:
        self._current = held
        names = (held.slot.model, *(name for name in self._names if name != held.slot.model))
        self._names = names[:MAX_NAMES]
        self._serving.use(held.slot)

    async def _let_go(self, held: _Held) -> None:
        with trio.move_on_after(DRAIN_S):
            while held.slot.users and not held.gone.is_set():
                await trio.sleep(_POLL_S)
        held.let_go.set()
        await held.gone.wait()

    async def _brought_up(self, model: str, tell: Callable[[Progress], None] | None = None) -> _Held:
        held: _Held = await self._nursery.start(self._hold, model, tell or self._tell)
        return held

    async def _hold(
        self, model: str, tell: Callable[[Progress], None], task_status: trio.TaskStatus[_Held]
    ) -> None:
        """One cluster, until it is let go. Its loss ends the session unless another is in its place already."""
        held: _Held | None = None
        wanted = replace(self._wanted, also_named=tuple(name for name in self._names if name != model))
        try:
            with unwrapped():
                async with opened_cluster(self._requester, model, None, wanted, tell) as opened:
                    with self._serving.lending(opened.cluster.lenders, opened.leased_at) as lend:
                        held = _Held(Slot(model, opened), trio.Event(), trio.Event())
                        task_status.started(held)
                        while not held.let_go.is_set():
                            with trio.move_on_after(_COUNT_S):
                                await held.let_go.wait()
                            lend(opened.cluster.lenders)
        except EdgeError as error:
            if held is None or held is self._current:
                raise
            log.warning("a cluster that was replaced broke", model=model, error=str(error))
        finally:
            if held is not None:
                held.gone.set()


@asynccontextmanager
async def holding(
    requester: Requester, wanted: Wanted, serving: Serving, tell: Callable[[Progress], None]
) -> AsyncIterator[Holding]:
    """Clusters of a session; all of them are gone when the context ends."""
    with unwrapped():
        async with trio.open_nursery() as nursery:
            yield Holding(requester, wanted, serving, nursery, tell)
            nursery.cancel_scope.cancel()


class SwapDesk:
    """Where gRPC's threads leave a swap for trio's: one at a time."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._lock = threading.Lock()
        self._asked: Swap | None = None

    def ask(self, model: str) -> Swap:
        """Raises SessionError while there is no cluster yet or another swap goes on, UsageError for no model."""
        if not model.strip():
            raise UsageError("a swap needs the model to come", remedy="say --model MODEL")
        with self._lock:
            if self._asked is not None and not self._asked.ended.is_set():
                raise SessionError(
                    f"a swap to {self._asked.model} is going on", remedy="wait until it has ended"
                )
            if self._serving.slot is None:
                raise SessionError("the session is still starting", remedy="ask again in a moment")
            swap = self._asked = Swap(model)
        return swap

    def taken(self) -> Swap | None:
        """A swap that nobody has begun with. For one taker."""
        swap = self._asked
        return swap if swap is not None and not swap.ended.is_set() else None


def _answers(count: int) -> str:
    return f"{count} answer{'' if count == 1 else 's'}"
