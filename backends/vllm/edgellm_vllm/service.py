"""`edgellm.backend.v1.Backend`, served from the head's event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc

from edgellm.wire import backend_pb2 as pb
from edgellm.wire import backend_pb2_grpc
from edgellm_vllm.api import Api
from edgellm_vllm.engine import BroughtUp, Engine, LoadError, RequestLost
from edgellm_vllm.events import EventStream
from edgellm_vllm.pace import paced
from edgellm_vllm.progress import Kind, ProgressListener
from edgellm_vllm.prompts import InvalidRequest
from edgellm_vllm.witness import InvalidScoring

State = pb.HealthReply
# vLLM's bring-up ends soon after its engine core.
_BRING_UP_ENDS_S = 8.0


class BackendService(backend_pb2_grpc.BackendServicer):
    """At most one engine at a time. `imported` ends when vLLM's modules are there."""

    def __init__(
        self, imported: Awaitable[None], progress: ProgressListener, api_socket: Path, events: EventStream
    ) -> None:
        self._imported = asyncio.ensure_future(imported)
        self._progress = progress
        self._api_socket, self._events = api_socket, events
        self._api: Api | None = None
        self._engine: Engine | None = None
        """Once it has been loaded, until it is unloaded."""
        self._new: Engine | None = None
        """In its first bring-up."""
        self._bring_up: asyncio.Task[pb.Loaded] | None = None
        self._detail = ""
        self._failed = False
        self._running: set[str] = set()

    async def Load(self, request: pb.LoadRequest, context: Any) -> AsyncIterator[pb.LoadEvent]:
        """See backend.proto. A caller that leaves does not stop the bring-up: vLLM cannot be stopped in it."""
        if self._loading() or (self._engine is not None and not self._engine.suspended):
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, "an engine is loaded already: Unload first"
            )
        wrong = _wrong_shape(request) or (self._engine.wrong_change(request) if self._engine else "")
        if wrong:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, wrong)
        phases: asyncio.Queue[pb.Phase | None] = asyncio.Queue()
        bring_up = self._bring_up = asyncio.create_task(self._load(request, phases))
        bring_up.add_done_callback(lambda _: phases.put_nowait(None))
        while (phase := await phases.get()) is not None:
            yield pb.LoadEvent(phase=phase)
        try:
            yield pb.LoadEvent(loaded=await asyncio.shield(bring_up))
        except LoadError as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateEvent]:
        """See backend.proto. UNAVAILABLE when engines break with this request in them."""
        engine = self._engine
        if engine is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no model is loaded: Load first")
            return
        if not request.request_id or request.request_id in self._running:
            wrong = f"the request id {request.request_id!r} is empty or in use"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, wrong)
        self._running.add(request.request_id)
        try:
            async with contextlib.aclosing(paced(engine.generate(request))) as events:
                async for event in events:
                    yield event
        except InvalidRequest as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except RequestLost as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        finally:
            self._running.discard(request.request_id)

    async def Abort(self, request: pb.AbortRequest, context: Any) -> pb.AbortReply:
        """See backend.proto."""
        if self._engine is not None and request.request_id in self._running:
            await self._engine.abort(request.request_id)
        return pb.AbortReply()

    async def Health(self, request: pb.HealthRequest, context: Any) -> pb.HealthReply:
        """See backend.proto."""
        return pb.HealthReply(state=self._state(), detail=self._detail, running_requests=len(self._running))

    async def Suspend(self, request: pb.SuspendRequest, context: Any) -> pb.SuspendReply:
        """See backend.proto."""
        engine = self._engine or self._new
        if engine is not None:
            engine.suspend()
        if self._bring_up is not None:
            await asyncio.wait([self._bring_up], timeout=_BRING_UP_ENDS_S)
        return pb.SuspendReply(waiting_requests=engine.waiting if engine is not None else 0)

    async def Served(self, request: pb.ServedRequest, context: Any) -> pb.ServedReply:
        """See backend.proto."""
        return self._engine.witness.served() if self._engine is not None else pb.ServedReply()

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreReply:
        """See backend.proto."""
        if self._engine is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no model is loaded: Load first")
            raise AssertionError
        try:
            return await self._engine.witness.score(request)
        except (InvalidScoring, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    async def Unload(self, request: pb.UnloadRequest, context: Any) -> pb.UnloadReply:
        """See backend.proto. Requests still running end with the reason "abort"."""
        if self._loading():
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the engine is still loading")
        await self.close()
        return pb.UnloadReply()

    async def close(self) -> None:
        """Ends the engine, if there is one."""
        api, self._api = self._api, None
        if api is not None:
            await api.close()
        engine, self._engine = self._engine, None
        if engine is None:
            return
        for request_id in tuple(self._running):
            await engine.abort(request_id)
        await engine.close()
        self._detail = ""

    def _loading(self) -> bool:
        return self._bring_up is not None and not self._bring_up.done()

    def _state(self) -> pb.HealthReply.State:
        if self._loading():
            return State.LOADING
        if self._engine is not None:
            return State.SUSPENDED if self._engine.suspended else State.READY
        if self._failed:
            return State.FAILED
        if not self._imported.done():
            return State.STARTING
        return State.FAILED if self._imported.exception() else State.IDLE

    async def _load(self, request: pb.LoadRequest, phases: asyncio.Queue[pb.Phase | None]) -> pb.Loaded:
        def phase(name: str, detail: str = "") -> None:
            self._detail = f"{name}: {detail}" if detail else name
            phases.put_nowait(pb.Phase(name=name, detail=detail))

        self._failed = False
        engine = self._engine or Engine(request, self._progress, self._tell)
        self._new = None if self._engine else engine
        try:
            phase("import")
            await asyncio.shield(self._imported)
            phase("config")
            brought_up = await engine.load(request, phase)
            self._engine = engine
        except (LoadError, ImportError) as error:
            self._failed, self._detail = True, str(error)
            if self._new is not None:
                await self._new.close()
            raise LoadError(str(error)) from error
        finally:
            self._new = None
        if request.serve_api and self._api is None:
            phase("api")
            try:
                self._api = await engine.start_api(request, self._api_socket)
            except Exception as error:  # noqa: BLE001
                # Whatever vLLM raises: the engine is there, and answers over gRPC.
                phase("api", f"off: {type(error).__name__}: {error}")
        self._detail = ""
        return self._loaded(brought_up)

    def _tell(self, kind: Kind, detail: str, address: str) -> None:
        if kind == "slow":
            self._events.slow(detail, address)
        else:
            self._detail = detail
            self._events.lost(detail, address)

    def _loaded(self, brought_up: BroughtUp) -> pb.Loaded:
        return pb.Loaded(
            ranks=[
                pb.RankPlacement(
                    rank=rank.rank,
                    address=rank.address,
                    first_layer=rank.first_layer,
                    end_layer=rank.end_layer,
                )
                for rank in brought_up.ranks
            ],
            kv_cache_tokens=brought_up.kv_cache_tokens,
            shares_kv=brought_up.shares_kv,
            serves_api=self._api is not None,
        )


def _wrong_shape(request: pb.LoadRequest) -> str:
    if not request.stages or request.tensor_parallel < 1:
        return "the plan needs at least one stage and one rank in each"
    layer = 0
    for stage in request.stages:
        if stage.first_layer != layer or stage.end_layer <= layer:
            return f"the stages' layers must follow on each other from 0: {stage.address} begins at {stage.first_layer}"
        layer = stage.end_layer
    return ""
