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
from edgellm_vllm.engine import Engine, LoadError, RankLost, load
from edgellm_vllm.pace import paced
from edgellm_vllm.progress import ProgressListener
from edgellm_vllm.prompts import InvalidRequest

State = pb.HealthReply


class BackendService(backend_pb2_grpc.BackendServicer):
    """At most one engine at a time. `imported` ends when vLLM's modules are there."""

    def __init__(self, imported: Awaitable[None], progress: ProgressListener, api_socket: Path) -> None:
        self._imported = asyncio.ensure_future(imported)
        self._progress = progress
        self._api_socket = api_socket
        self._api: Api | None = None
        self._engine: Engine | None = None
        self._bring_up: asyncio.Task[pb.Loaded] | None = None
        self._detail = ""
        self._failed = False
        self._running: set[str] = set()

    async def Load(self, request: pb.LoadRequest, context: Any) -> AsyncIterator[pb.LoadEvent]:
        """See backend.proto. A caller that leaves does not stop the bring-up: vLLM cannot be stopped in it."""
        if self._engine is not None or self._loading():
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, "an engine is loaded already: Unload first"
            )
        if wrong := _wrong_shape(request):
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
        """See backend.proto. UNAVAILABLE when a rank has died: load anew, on other members."""
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
        except RankLost:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "a rank's process died; the engine cannot go on")
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
        if self._failed or (self._engine is not None and self._engine.lost):
            return State.FAILED
        if self._loading():
            return State.LOADING
        if self._engine is not None:
            return State.READY
        if not self._imported.done():
            return State.STARTING
        return State.FAILED if self._imported.exception() else State.IDLE

    async def _load(self, request: pb.LoadRequest, phases: asyncio.Queue[pb.Phase | None]) -> pb.Loaded:
        def phase(name: str, detail: str = "") -> None:
            self._detail = f"{name}: {detail}" if detail else name
            phases.put_nowait(pb.Phase(name=name, detail=detail))

        self._failed = False
        try:
            phase("import")
            await asyncio.shield(self._imported)
            phase("config")
            self._engine, ranks = await load(request, self._progress, phase)
        except (LoadError, ImportError) as error:
            self._failed, self._detail = True, str(error)
            raise LoadError(str(error)) from error
        if request.serve_api:
            phase("api")
            try:
                self._api = await self._engine.start_api(request, self._api_socket)
            except Exception as error:  # noqa: BLE001
                # Whatever vLLM raises: the engine is there, and answers over gRPC.
                phase("api", f"off: {type(error).__name__}: {error}")
        self._detail = ""
        return pb.Loaded(
            ranks=[
                pb.RankPlacement(
                    rank=rank.rank,
                    address=rank.address,
                    first_layer=rank.first_layer,
                    end_layer=rank.end_layer,
                )
                for rank in ranks
            ],
            kv_cache_tokens=self._engine.kv_cache_tokens,
            shares_kv=self._engine.shares_kv,
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
