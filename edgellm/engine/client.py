"""A node's side of `proto/backend.proto`: the engine in a cell, reached over gRPC on a Unix socket.

gRPC's own event loop is not trio's, so each blocking step runs in a thread; cancelling a call here cancels it there.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar, cast

import grpc
import trio

from edgellm.engine.question import piece_from_wire, question_to_wire
from edgellm.errors import EdgeError, EngineError, UsageError
from edgellm.types.request import Piece, Question
from edgellm.wire import backend_pb2, backend_pb2_grpc

CALL_TIMEOUT_S = 10.0
MAX_CALLS_AT_ONCE = 256
_END = object()

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _Call(Protocol[T_co]):
    def __iter__(self) -> Iterator[T_co]: ...
    def cancel(self) -> bool: ...


class EngineClient:
    """Talks to one engine. Made by `open_engine`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = backend_pb2_grpc.BackendStub(channel)  # type: ignore[no-untyped-call] # generated
        self._threads = trio.CapacityLimiter(MAX_CALLS_AT_ONCE)

    async def health(self, *, timeout_s: float = CALL_TIMEOUT_S) -> backend_pb2.HealthReply:
        """How the engine is. Raises EngineError when it does not answer."""
        ask = functools.partial(
            self._stub.Health, backend_pb2.HealthRequest(), timeout=timeout_s, wait_for_ready=True
        )
        try:
            reply = await self._in_thread(ask)
        except grpc.RpcError as error:
            raise _translated(error) from error
        return cast(backend_pb2.HealthReply, reply)

    async def load(
        self, request: backend_pb2.LoadRequest, on_phase: Callable[[str, str], None], *, timeout_s: float
    ) -> backend_pb2.Loaded:
        """Brings the engine up, or a suspended one over other members; tells each phase as it begins. Raises EngineError."""
        call = self._stub.Load(request, timeout=timeout_s, wait_for_ready=True)
        async with aclosing(self._events(cast("_Call[backend_pb2.LoadEvent]", call))) as events:
            async for event in events:
                if event.WhichOneof("event") == "loaded":
                    return event.loaded
                on_phase(event.phase.name, event.phase.detail)
        raise EngineError("the engine ended its start without saying that it is ready")

    async def suspend(self, *, timeout_s: float = CALL_TIMEOUT_S) -> int:
        """Ends what runs on the members, at once; requests wait for the next `load`. Returns how many. Raises EngineError."""
        ask = functools.partial(
            self._stub.Suspend, backend_pb2.SuspendRequest(), timeout=timeout_s, wait_for_ready=True
        )
        try:
            reply = await self._in_thread(ask)
        except grpc.RpcError as error:
            raise _translated(error) from error
        return cast(backend_pb2.SuspendReply, reply).waiting_requests

    async def generate(self, question: Question, request_id: str) -> AsyncGenerator[Piece, None]:
        """The answer, piece by piece. Closing the iterator aborts the request in the engine.

        Raises UsageError when the engine finds the request wrong (a prompt too long), EngineError when it fails.
        """
        async with aclosing(self.generate_wire(question_to_wire(question, request_id))) as events:
            async for event in events:
                yield piece_from_wire(event)

    async def generate_wire(
        self, request: backend_pb2.GenerateRequest
    ) -> AsyncGenerator[backend_pb2.GenerateEvent, None]:
        """As `generate`, in the messages of the wire."""
        call = self._stub.Generate(request)
        async with aclosing(self._events(cast("_Call[backend_pb2.GenerateEvent]", call))) as events:
            async for event in events:
                yield event

    async def served(self, *, timeout_s: float = CALL_TIMEOUT_S) -> backend_pb2.ServedReply:
        """What was answered so far, and what of it is to be checked. Raises EngineError where it does not say."""
        ask = functools.partial(self._stub.Served, backend_pb2.ServedRequest(), timeout=timeout_s)
        try:
            return cast(backend_pb2.ServedReply, await self._in_thread(ask))
        except grpc.RpcError as error:
            raise _translated(error) from error

    async def score(self, request: backend_pb2.ScoreRequest, *, timeout_s: float) -> backend_pb2.ScoreReply:
        """What this engine makes of tokens of an answer. Raises EngineError where it cannot, UsageError for a wrong request."""
        ask = functools.partial(self._stub.Score, request, timeout=timeout_s)
        try:
            return cast(backend_pb2.ScoreReply, await self._in_thread(ask))
        except grpc.RpcError as error:
            raise _translated(error) from error

    async def _in_thread(self, call: Callable[[], object]) -> object:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)

    async def _events(self, call: _Call[T]) -> AsyncGenerator[T, None]:
        following = functools.partial(next, iter(call), _END)
        try:
            while True:
                event = await self._in_thread(following)
                if event is _END:
                    return
                yield cast(T, event)
        except grpc.RpcError as error:
            raise _translated(error) from error
        finally:
            call.cancel()


@asynccontextmanager
async def open_engine(socket: Path) -> AsyncIterator[EngineClient]:
    """A client of the engine that serves, or soon will, on `socket`."""
    channel = grpc.insecure_channel(
        f"unix:{socket}",
        options=[
            ("grpc.max_receive_message_length", 16 << 20),
            # The engine may come up long after the first try; gRPC would otherwise wait for up to two minutes between tries.
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
        ],
    )
    try:
        yield EngineClient(channel)
    finally:
        channel.close()


def _translated(error: grpc.RpcError) -> EdgeError:
    code = error.code() if isinstance(error, grpc.Call) else None
    details = (error.details() if isinstance(error, grpc.Call) else None) or str(error)
    line = details.strip().splitlines()[0][:500] if details.strip() else "it said nothing"
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return UsageError(line)
    if code == grpc.StatusCode.UNAVAILABLE:
        return EngineError(f"the engine is gone: {line}")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return EngineError("the engine did not answer in time")
    return EngineError(f"the engine failed: {line}")
