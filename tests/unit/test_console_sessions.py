"""Sessions as the console shows and uses them: real directories, daemons behind their real protocol, engines over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edgellm.console import chat, views
from edgellm.console.chat import SessionEngines, engines_of, timings_of
from edgellm.console.membership import Place
from edgellm.console.serving import serve_on_unix
from edgellm.console.sessions import SessionsHere, Swapper, session_of
from edgellm.console.sources import Busy, Conflict, Event, NotKnown, NotThere
from edgellm.errors import EngineError, SessionError, UsageError
from edgellm.paths import default_paths
from edgellm.sessions import client
from edgellm.sessions.client import ProgressLine, SessionState, list_sessions
from edgellm.sessions.daemon_order import Order
from edgellm.sessions.registry import Registry, SessionFiles, SessionRecord, write_record
from edgellm.wire import session_pb2
from tests.unit.test_sessions import daemon

WANTED = views.NewSession(model="tiny", name="birch", pp=2, idle_s=60)
PLACE = Place(("/ip4/10.0.0.1/tcp/1/p2p/x",), False)
LINE = b'{"at": 1.0, "who": "head", "phase": "ray", "detail": "start"}\n'


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    return Registry.of(default_paths())


@asynccontextmanager
async def sessions(registry: Registry, swap: Swapper | None = None) -> AsyncIterator[SessionsHere]:
    async def place() -> Place:
        return PLACE

    def latency_s(peer: str) -> float | None:
        return {"peer-a": 0.004}.get(peer)

    async with trio.open_nursery() as nursery:
        yield SessionsHere(registry, nursery, place, latency_s, isolation="none", swap=swap)
        nursery.cancel_scope.cancel()


def daemons_that(program: str, monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """Sessions are opened with such a program for a daemon; what they were ordered."""
    orders: list[Order] = []

    def launch(registry: Registry, order: Order, files: SessionFiles) -> subprocess.Popen[bytes]:
        orders.append(order)
        with files.log.open("ab") as log:
            return subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log)

    monkeypatch.setattr(client, "launch_session", launch)
    return orders


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.02)


async def test_a_session_is_shown_with_its_stages(registry: Registry) -> None:
    with daemon(registry):
        async with sessions(registry) as it:
            (shown,) = await it.all()
            assert shown == await it.one("amber")
    assert (shown.name, shown.model, shown.state) == ("amber", "tiny", "ready")
    assert shown.stages == [
        views.Stage(stage=0, peer="peer-a", name="alice", first_layer=0, end_layer=8, latency_s=0.004)
    ]


def test_one_that_closes_after_the_end_of_all_calendars_stays_open() -> None:
    def closes_at(expires_unix_ms: int) -> float | None:
        said = session_pb2.Description(
            name="amber", state="ready", opened_unix_ms=10**12, idle_expires_unix_ms=expires_unix_ms
        )
        return session_of(SessionState("amber", None, said), None, lambda peer: None).closes_at

    assert closes_at(10**12 + 900_000) == 1e9 + 900
    assert (closes_at(0), closes_at(10**15)) == (None, None)


async def test_one_that_was_ready_and_is_no_more_is_closing(registry: Registry) -> None:
    with daemon(registry, state="starting") as (_, files):
        async with sessions(registry) as it:
            assert (await it.one("amber")).state == "starting"
            started = psutil.Process().create_time()
            write_record(files, SessionRecord("amber", "tiny", os.getpid(), started, "ready"))
            assert (await it.one("amber")).state == "closing"


async def test_names_that_are_not_there(registry: Registry) -> None:
    async with sessions(registry) as it:
        for ask in (it.one("birch"), it.close("birch"), it.swap("birch", "other")):
            with pytest.raises(NotKnown):
                await ask
        with pytest.raises(NotKnown):
            async with it.watch("birch"):
                pass


async def test_opening_orders_a_daemon(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = daemons_that("import time; time.sleep(60)", monkeypatch)
    async with sessions(registry) as it:
        opened = await it.open(WANTED)
        assert (opened.name, opened.state) == ("birch", "starting")
        # Between the order and the daemon's first word, nobody takes it for a leftover.
        assert [state.name for state in list_sessions(registry)] == ["birch"]
        assert (await it.one("birch")).model == "tiny"
        with pytest.raises(Conflict, match="already"):
            await it.open(WANTED)
        it._daemons["birch"][0].kill()
    (order,) = orders
    assert (order.model, order.pipeline_parallel, order.idle_s) == ("tiny", 2, 60)
    assert (order.bootstrap, order.isolation, order.kv_scope) == (PLACE.bootstrap, "none", None)


async def test_a_daemon_that_dies_without_a_word_is_given_one(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemons_that("import sys; sys.exit('no such module')", monkeypatch)
    async with sessions(registry) as it:
        await it.open(WANTED)
        with trio.fail_after(10):
            while (shown := await it.one("birch")).state == "starting":
                await trio.sleep(0.05)
        assert shown.state == "failed"
        assert shown.failure is not None
        assert "status 1: no such module" in shown.failure.message
        assert [session.state for session in await it.all()] == ["failed"]
        await it.close("birch")
        assert await it.all() == ()


async def test_events_tell_the_progress_and_each_state(registry: Registry) -> None:
    heard: list[Event] = []
    with trio.CancelScope() as scope, daemon(registry, state="starting") as (serving, files):
        files.progress.write_bytes(LINE)
        async with sessions(registry) as it, it.watch("amber") as events:
            scope.deadline = trio.current_time() + 10
            heard += [await events.receive(), await events.receive()]
            with files.progress.open("ab") as progress:
                progress.write(LINE.replace(b"ray", b"load") + b'{"at": 1.0, "wh')
            heard.append(await events.receive())
            heard.append(await events.receive())
            serving.description.state = "ready"
            heard.append(await events.receive())
            registry.remove("amber")
            with trio.fail_after(5):
                heard += [event async for event in events]
    assert [event.name for event in heard] == ["progress", "state", "progress", "state", "state", "end"]
    assert isinstance(heard[1].data, views.Session)
    assert (heard[1].data.state, heard[1].data.detail) == ("starting", "head ray start")
    assert isinstance(heard[4].data, views.Session)
    assert heard[4].data.state == "ready"


async def test_events_of_one_that_failed_end(registry: Registry) -> None:
    _, files = registry.reserve("amber")
    write_record(files, SessionRecord("amber", "tiny", 1, 1.0, "failed", "no host left", "start one"))
    async with sessions(registry) as it, it.watch("amber") as events:
        with trio.fail_after(5):
            heard = [event async for event in events]
    assert [event.name for event in heard] == ["state", "end"]
    assert isinstance(heard[0].data, views.Session)
    assert heard[0].data.failure == views.Problem(message="no host left", remedy="start one", type="session")


async def test_a_swap_is_told_while_it_goes_on(registry: Registry) -> None:
    go_on = threading.Event()

    def swap(registry: Registry, name: str, model: str, tell: Callable[[ProgressLine], None]) -> None:
        tell(ProgressLine(1.0, "head", "load", model))
        assert go_on.wait(10)
        raise SessionError("no host has it", remedy="start one")

    with daemon(registry):
        async with sessions(registry, swap) as it:
            begun = await it.swap("amber", "other")
            assert (begun.state, begun.swapping_to) == ("swapping", "other")
            with pytest.raises(Conflict):
                await it.swap("amber", "third")
            go_on.set()
            with trio.fail_after(5):
                while (shown := await it.one("amber")).state != "ready":
                    await trio.sleep(0.05)
            assert shown.swap_failure is not None
            assert shown.swap_failure.message == "no host has it"


async def test_a_swap_that_another_asked_for_is_shown_too(registry: Registry) -> None:
    with daemon(registry) as (serving, _):
        serving.description.swapping_to, serving.description.detail = "other", "head ray"
        async with sessions(registry) as it:
            shown = await it.one("amber")
    assert (shown.state, shown.swapping_to, shown.detail) == ("swapping", "other", "head ray")


def test_what_is_left_of_one_that_never_began_is_swept(registry: Registry) -> None:
    _, files = registry.reserve("amber")
    assert [state.name for state in list_sessions(registry)] == ["amber"]
    long_ago = time.time() - 60
    os.utime(files.directory, (long_ago, long_ago))
    assert list_sessions(registry) == ()


# --- engines


@dataclass
class Engine:
    """The API of an engine, as its script says."""

    asked: list[tuple[dict[str, object], str]] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=lambda: [b"data: 1\n\n", b"data: [DONE]\n\n"])
    is_endless: bool = False
    breaks_off: bool = False
    running: int = 0
    timings: dict[str, object] | None = None

    def app(self) -> Starlette:
        routes = [Route("/v1/chat/completions", self._chat, methods=["POST"])]
        if self.timings is not None:
            routes.append(Route("/edgellm/timings/{request_id}", self._timings))
        return Starlette(routes=routes)

    async def _chat(self, request: Request) -> Response:
        self.asked.append((await request.json(), request.headers["x-request-id"]))

        async def parts() -> AsyncIterator[bytes]:
            self.running += 1
            try:
                yield self.pieces[0]
                if self.breaks_off:
                    raise RuntimeError
                if self.is_endless:
                    await trio.sleep_forever()
                for piece in self.pieces[1:]:
                    yield piece
            finally:
                self.running -= 1

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def _timings(self, request: Request) -> Response:
        if request.path_params["request_id"] != "r1":
            error = {"message": "no such request", "type": "NotFoundError", "param": None, "code": 404}
            return JSONResponse({"error": error}, 404)
        return JSONResponse(self.timings)


@asynccontextmanager
async def engines(
    registry: Registry, engine: Engine
) -> AsyncIterator[tuple[SessionEngines, threading.Event]]:
    """And an event that tells when a use of the session has ended."""
    with daemon(registry) as (serving, files):
        path = files.socket.with_name("api.sock")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_on_unix, engine.app(), path)
            await until(path.exists)
            assert path.stat().st_mode & 0o777 == 0o600
            yield SessionEngines(engines_of(registry)), serving.used
            nursery.cancel_scope.cancel()
        assert not path.exists()


async def test_a_chat_gets_the_model_and_an_id(registry: Registry) -> None:
    engine = Engine()
    async with engines(registry, engine) as (it, used):
        async with it.ask("amber", {"messages": [{}], "stream": True}) as answer:
            said = b"".join([part async for part in answer.body])
            assert not used.is_set()
        await until(used.is_set)
    assert (answer.status, answer.content_type.split(";")[0]) == (200, "text/event-stream")
    assert said == b"".join(engine.pieces)
    assert engine.asked == [({"messages": [{}], "stream": True, "model": "tiny"}, answer.request_id)]


async def test_what_a_chat_may_hold(registry: Registry) -> None:
    engine = Engine()
    async with engines(registry, engine) as (it, _):
        async with it.ask("amber", {"messages": [{"content": "\ud800 ä"}]}) as answer:
            assert answer.status == 200
        with pytest.raises(UsageError, match="infinite"):
            async with it.ask("amber", {"temperature": float("nan")}):
                pass
    assert engine.asked[0][0]["messages"] == [{"content": "\ud800 ä"}]


async def test_leaving_a_chat_leaves_the_engine_and_the_session(registry: Registry) -> None:
    engine = Engine(is_endless=True)
    async with engines(registry, engine) as (it, used):
        async with it.ask("amber", {"messages": [{}]}) as answer:
            assert await anext(answer.body) == engine.pieces[0]
            assert engine.running == 1
        await until(lambda: engine.running == 0 and used.is_set())


async def test_engines_that_fail(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    async with engines(registry, Engine(breaks_off=True)) as (it, _):
        async with it.ask("amber", {"messages": [{}]}) as answer:
            with pytest.raises(EngineError, match="broke off"):
                assert [part async for part in answer.body]
        monkeypatch.setattr(chat, "MAX_CHATS", 0)
        with pytest.raises(Busy):
            async with it.ask("amber", {}):
                pass
        with pytest.raises(NotKnown):
            await it.timings("birch", "r1")


async def test_an_engine_that_is_not_there(registry: Registry) -> None:
    it = SessionEngines(engines_of(registry))
    with daemon(registry):
        with pytest.raises(EngineError, match="no timings now"):
            await it.timings("amber", "r1")
        with pytest.raises(EngineError, match="does not answer"):
            async with it.ask("amber", {"messages": [{}]}):
                pass


async def test_a_session_that_still_starts_answers_nobody(registry: Registry) -> None:
    with daemon(registry, state="starting"), pytest.raises(Conflict, match="not ready"):
        await SessionEngines(engines_of(registry)).timings("amber", "r1")


async def test_timings_name_their_hosts(registry: Registry) -> None:
    told: dict[str, object] = {
        "request_id": "r1",
        "prompt_tokens": 4,
        "queue_s": None,
        "stages": [{"stage": 0, "address": "10.88.1.2", "prefill_s": 0.1, "decode_s": None}],
        "network_s": {"prefill_s": 0.02, "decode_s": None},
    }
    async with engines(registry, Engine(timings=told)) as (it, _):
        timings = await it.timings("amber", "r1")
        assert (timings.stages[0].name, timings.stages[0].end_layer) == ("alice", 8)
        assert timings.network_s.prefill_s == 0.02
        with pytest.raises(NotKnown):
            await it.timings("amber", "r2")


def test_what_the_engine_says_is_null_is_not_known() -> None:
    said = {
        "request_id": "r",
        "stages": [{"stage": 0, "prefill_s": None, "decode_s": None}],
        "network_s": None,
    }
    timings = timings_of(json.dumps(said).encode(), [])
    assert timings.network_s == views.NetworkTiming()


async def test_engines_that_keep_no_timings(registry: Registry) -> None:
    async with engines(registry, Engine()) as (it, _):
        with pytest.raises(NotThere):
            await it.timings("amber", "r1")


def test_timings_that_make_no_sense() -> None:
    stage = session_pb2.StageDescription(peer="p", name="alice", first_layer=0, end_layer=8)
    extra = json.dumps({"request_id": "r", "stages": [{"stage": 7}]}).encode()
    assert timings_of(extra, [stage]).stages[0].name == ""
    for said in (b"", b"[]", b'{"request_id": 5}', b'{"request_id": "r", "token_s": "x"}'):
        with pytest.raises(EngineError):
            timings_of(said, [stage])
