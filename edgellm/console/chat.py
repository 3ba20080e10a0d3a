"""Questions to the engine of a session, and its timings: passed through to its API, whose socket is beside the one that the
session's `Use` tells. While that call lasts the session counts as used.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import trio
from pydantic import ValidationError

from edgellm.cluster.head import API_SOCKET
from edgellm.console import views
from edgellm.console.sources import Answer, Busy, Conflict, NotKnown, NotThere
from edgellm.errors import EngineError, SessionError, UsageError
from edgellm.sessions.client import session_state
from edgellm.sessions.registry import Registry
from edgellm.wire import session_pb2, session_pb2_grpc

MAX_CHATS = 32
MAX_QUESTIONS = 16
"""About timings, at once."""
USE_S = 10.0
"""How long a session may take to name its engine."""
CONNECT_S = 5.0
ANSWER_S = 1800.0
"""How long an engine may be silent: a long prompt on slow machines takes minutes."""
TIMINGS_S = 5.0
MAX_TIMINGS_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Engine:
    """The engine of a session that is ready."""

    api_socket: Path
    model: str
    stages: tuple[session_pb2.StageDescription, ...] = ()


Used = Callable[[str], AbstractAsyncContextManager[Engine]]
"""Gives the engine of the session of that name; while the context lasts the session counts as used."""


def engines_of(registry: Registry) -> Used:
    """Engines as the daemons of sessions tell them."""

    @asynccontextmanager
    async def used(name: str) -> AsyncIterator[Engine]:
        try:
            state = await trio.to_thread.run_sync(session_state, registry, name)
        except SessionError as error:
            raise NotKnown(str(error), remedy=error.remedy) from error
        description = state.description
        if description is None or description.state != "ready":
            raise Conflict(f"session {name!r} is not ready", remedy="its events tell what it is at")
        with grpc.insecure_channel(f"unix:{registry.files(name).socket}") as channel:
            stub = session_pb2_grpc.SessionStub(channel)  # type: ignore[no-untyped-call] # generated
            use = stub.Use(session_pb2.UseRequest())
            try:
                socket = await _first(use, name)
                yield Engine(Path(socket).with_name(API_SOCKET), description.model, tuple(description.stages))
            finally:
                use.cancel()

    return used


async def _first(use: Any, name: str) -> str:
    try:
        with trio.fail_after(USE_S):
            engine: session_pb2.Engine = await trio.to_thread.run_sync(next, use, abandon_on_cancel=True)
    except trio.TooSlowError as error:
        raise EngineError(f"session {name!r} does not say where its engine is") from error
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise Busy(
                f"session {name!r} answers as many questions as it takes", remedy="ask again later"
            ) from error
        raise Conflict(f"session {name!r} is not ready", remedy="its events tell what it is at") from error
    return engine.socket


class SessionEngines:
    """`edgellm.console.sources.EngineSource`."""

    def __init__(self, used: Used) -> None:
        self._used = used
        self._chats = 0
        self._questions = trio.CapacityLimiter(MAX_QUESTIONS)

    @asynccontextmanager
    async def ask(self, name: str, body: dict[str, object]) -> AsyncIterator[Answer]:
        if self._chats >= MAX_CHATS:
            raise Busy(f"{self._chats} chats run in this console already")
        self._chats += 1
        try:
            async with self._used(name) as engine, _connected(engine) as http:
                request_id = secrets.token_hex(16)
                request = http.build_request(
                    "POST",
                    "/v1/chat/completions",
                    content=_json({**body, "model": engine.model}),
                    headers={"x-request-id": request_id, "content-type": "application/json"},
                )
                try:
                    response = await http.send(request, stream=True)
                except httpx.HTTPError as error:
                    raise EngineError(f"the engine of session {name!r} does not answer") from error
                try:
                    async with aclosing(_parts(response, name)) as parts:
                        yield Answer(
                            response.status_code,
                            response.headers.get("content-type", "application/octet-stream"),
                            response.headers.get("x-request-id", request_id),
                            parts,
                        )
                finally:
                    await response.aclose()
        finally:
            self._chats -= 1

    async def timings(self, name: str, request_id: str) -> views.Timings:
        if self._questions.available_tokens < 1:
            raise Busy("too many questions about timings at once")
        async with self._questions, self._used(name) as engine, _connected(engine) as http:
            try:
                with trio.fail_after(TIMINGS_S):
                    async with http.stream("GET", f"/edgellm/timings/{request_id}") as response:
                        said = await _bounded(response)
            except (httpx.HTTPError, trio.TooSlowError) as error:
                raise EngineError(f"the engine of session {name!r} tells no timings now") from error
            if response.status_code == 404:
                if _is_no_route(said):
                    raise NotThere("the engine of this session keeps no timings", remedy="open a new session")
                raise NotKnown(f"no timings are known of request {request_id!r}: only the last ones are kept")
            return timings_of(said, engine.stages)


def timings_of(said: bytes, stages: Sequence[session_pb2.StageDescription]) -> views.Timings:
    """What an engine tells, with what its stages are called. Raises EngineError for what makes no sense."""
    try:
        timings = views.Timings.model_validate_json(said)
    except ValidationError as error:
        raise EngineError("the engine's timings make no sense") from error
    known = dict(enumerate(stages))
    named = [
        timing.model_copy(
            update={
                "peer": known[timing.stage].peer,
                "name": known[timing.stage].name,
                "first_layer": known[timing.stage].first_layer,
                "end_layer": known[timing.stage].end_layer,
            }
        )
        if timing.stage in known
        else timing
        for timing in timings.stages
    ]
    return timings.model_copy(update={"stages": named})


def _connected(engine: Engine) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(engine.api_socket)),
        base_url="http://engine",
        timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
        trust_env=False,
    )


def _json(body: dict[str, object]) -> str:
    """In ASCII, which takes any text there is. Raises UsageError."""
    try:
        return json.dumps(body, allow_nan=False)
    except ValueError as error:
        raise UsageError("a number in the chat is infinite or none") from error


async def _parts(response: httpx.Response, name: str) -> AsyncGenerator[bytes, None]:
    try:
        async for part in response.aiter_raw():
            yield part
    except httpx.HTTPError as error:
        raise EngineError(f"the engine of session {name!r} broke off") from error


async def _bounded(response: httpx.Response) -> bytes:
    said = b""
    async for part in response.aiter_raw():
        said += part
        if len(said) > MAX_TIMINGS_BYTES:
            raise EngineError("the engine's timings are too long")
    return said


def _is_no_route(said: bytes) -> bool:
    """Whether it is the engine's server that knows no such path, and not the timings that know no such request."""
    try:
        answer = json.loads(said)
    except ValueError:
        return True
    if not isinstance(answer, dict):
        return True
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else answer.get("detail")
    return message == "Not Found"
