"""Engines and machines in virtual time: no processes, no threads, no sockets. For simulations of whole swarms.

A greedy answer is a chain: each token follows from all before it, prompt included. So an answer that goes on elsewhere is equal
to the undisturbed one (`greedy`) only if no token was lost, doubled or changed on the way.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from edgellm.cluster.door import Door
from edgellm.cluster.member import RunningMember
from edgellm.cluster.switchboard import Switchboard
from edgellm.engine.client import EngineClient
from edgellm.errors import EngineError
from edgellm.testing.scripted_machine import ScriptedCell
from edgellm.types.plan import ClusterPlan, Member
from edgellm.wire import backend_pb2

VOCABULARY = 32_000
STILL_S = 0.5
"""How often an engine that cannot go on looks whether it can."""


def greedy(tokens: Iterable[int]) -> Iterator[int]:
    """What follows `tokens`, without end."""
    state = 0
    for token in tokens:
        state = zlib.crc32(token.to_bytes(4, "little"), state)
    while True:
        token = state % VOCABULARY
        yield token
        state = zlib.crc32(token.to_bytes(4, "little"), state)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a cluster is."""

    load_s: float
    prefill_tok_s: float
    token_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What an engine runs on from one load to the next."""

    pace: Pace
    is_whole: Callable[[], bool]
    """Whether all of its members are there. Where they are not it says nothing any more, as vLLM does."""


class SimulatedEngine(EngineClient):
    """An engine whose answers outlive its members, as `proto/backend.proto` says."""

    def __init__(self, run_of: Callable[[], Run]) -> None:
        """`run_of` is asked at each load for what it runs on from then on."""
        self._run_of = run_of
        self._run: Run | None = None
        self._waiting = 0

    async def health(self, *, timeout_s: float = 10.0) -> backend_pb2.HealthReply:
        await trio.lowlevel.checkpoint()
        ready, suspended = backend_pb2.HealthReply.READY, backend_pb2.HealthReply.SUSPENDED
        return backend_pb2.HealthReply(state=ready if self._run is not None else suspended)

    async def load(
        self, request: backend_pb2.LoadRequest, on_phase: Callable[[str, str], None], *, timeout_s: float
    ) -> backend_pb2.Loaded:
        if self._run is not None:
            raise EngineError("an engine is loaded already")
        on_phase("import", "simulated")
        run = self._run_of()
        await trio.sleep(run.pace.load_s)
        if not run.is_whole():
            await trio.sleep_forever()
        ranks = [
            backend_pb2.RankPlacement(
                rank=index, address=stage.address, first_layer=stage.first_layer, end_layer=stage.end_layer
            )
            for index, stage in enumerate(
                stage for stage in request.stages for _ in range(request.tensor_parallel)
            )
        ]
        self._run = run
        return backend_pb2.Loaded(ranks=ranks, kv_cache_tokens=1 << 16)

    async def suspend(self, *, timeout_s: float = 10.0) -> int:
        await trio.lowlevel.checkpoint()
        self._run = None
        return self._waiting

    async def generate_wire(
        self, request: backend_pb2.GenerateRequest
    ) -> AsyncGenerator[backend_pb2.GenerateEvent, None]:
        prompt = list(request.tokens.ids)
        tokens = greedy(prompt)
        answered = 0
        computed_by: Run | None = None
        self._waiting += 1
        try:
            while answered < request.sampling.max_tokens:
                run = self._run
                if run is None or not run.is_whole():
                    await trio.sleep(STILL_S)
                    continue
                if run is not computed_by:
                    # Whoever is new has no KV cache of what came before.
                    await trio.sleep((len(prompt) + answered) / run.pace.prefill_tok_s)
                    computed_by = run
                await trio.sleep(run.pace.token_s)
                if run is not self._run or not run.is_whole():
                    continue
                token = next(tokens)
                answered += 1
                yield backend_pb2.GenerateEvent(
                    token_ids=[token],
                    text=f"{token} ",
                    prompt_tokens=len(prompt),
                    finish_reason="length" if answered == request.sampling.max_tokens else "",
                )
        finally:
            self._waiting -= 1


@dataclass
class SimulatedMachine:
    """Runs members of clusters in virtual time (`edgellm.cluster.member.Machine`)."""

    pace: Callable[[ClusterPlan], Pace]
    """Of a cluster whose head is here, by its plan."""
    answers: Callable[[str], bool]
    """Whether a peer is there."""
    cells: list[ScriptedCell] = field(default_factory=list)
    """Those that run now."""

    def open_member(
        self, switchboard: Switchboard, plan: ClusterPlan, own: Member, door: Door, model_directory: Path
    ) -> AbstractAsyncContextManager[RunningMember]:
        return self._open(plan, own)

    @asynccontextmanager
    async def _open(self, plan: ClusterPlan, own: Member) -> AsyncIterator[RunningMember]:
        cell = ScriptedCell()
        self.cells.append(cell)
        if own is not plan.head:
            cell.say.send_nowait({"event": "joined"})
            cell.say.send_nowait({"event": "warm"})
        in_force = plan

        async def amend(amended: ClusterPlan) -> None:
            nonlocal in_force
            await trio.lowlevel.checkpoint()
            in_force = amended

        def run_of() -> Run:
            members = in_force.members
            return Run(self.pace(in_force), lambda: all(self.answers(member.peer) for member in members))

        @asynccontextmanager
        async def engine(socket: Path) -> AsyncIterator[EngineClient]:
            yield SimulatedEngine(run_of)

        try:
            yield RunningMember(cell, Path("/nowhere/engine.sock"), "/model", amend, engine)
        finally:
            cell.say.close()
            self.cells.remove(cell)
