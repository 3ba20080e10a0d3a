"""The console's API over scripted sources: each answer, each refusal, and what happens when somebody leaves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from edgellm.console import gatekeeper
from edgellm.console.app import create_app
from edgellm.console.guard import MAX_BODY_BYTES
from edgellm.console.serving import open_port, serve
from edgellm.console.sources import Unavailable
from edgellm.errors import EdgeError, EngineError, UsageError
from tests.unit.console_sources import EVENTS, SESSION, SWARM, Script, rules, scripted

TOKEN = "0123456789abcdef"
BASE = "http://127.0.0.1:8643"


@asynccontextmanager
async def console(script: Script | None = None, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, without a network between."""
    app = create_app(scripted(script), rules(token=token))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as client:
        yield client


@asynccontextmanager
async def served(script: Script) -> AsyncIterator[httpx.AsyncClient]:
    """The same over a real connection, with the real server."""
    with open_port("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, create_app(scripted(script), rules(port)), listening)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                yield client
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.01)


def error_of(response: httpx.Response) -> tuple[int, str]:
    """Status and type; every error has one shape."""
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "remedy", "type"}
    assert error["message"]
    return response.status_code, error["type"]


def events_of(body: str) -> list[tuple[str, object]]:
    blocks = [block.splitlines() for block in body.split("\n\n") if block.startswith("event:")]
    return [
        (lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in blocks
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/health", {"status": "ok"}),
        ("/api/v1/swarm", SWARM.model_dump()),
        ("/api/v1/sessions", {"sessions": [SESSION.model_dump()]}),
        ("/api/v1/sessions/amber", SESSION.model_dump()),
        ("/api/v1/hosts", {"hosts": [], "offered": True}),
    ],
)
async def test_what_is_shown(path: str, expected: object) -> None:
    async with console() as client:
        response = await client.get(path)
    assert (response.status_code, response.json()) == (200, expected)


async def test_what_else_is_shown() -> None:
    async with console() as client:
        assert (await client.get("/api/v1/version")).json()["starts_hosts"] is True
        assert (await client.get("/api/v1/kv")).json()["figures"] == {"used_tokens": 512.0}
        assert (await client.get("/api/v1/doctor")).json()["checks"][0]["status"] == "fail"
        timings = (await client.get("/api/v1/sessions/amber/timings/r1")).json()
        assert timings["token_s"] == [0.1, 0.2]


async def test_a_session_from_its_opening_to_its_end() -> None:
    script = Script(swaps=False)
    async with console(script) as client:
        opened = await client.post("/api/v1/sessions", json={"model": "tiny", "name": "birch", "pp": 2})
        assert (opened.status_code, opened.json()["state"]) == (202, "starting")
        assert opened.headers["location"] == "/api/v1/sessions/birch"
        assert (await client.get(opened.headers["location"])).json()["name"] == "birch"
        again = await client.post("/api/v1/sessions", json={"model": "tiny", "name": "birch"})
        assert error_of(again) == (409, "conflict")
        swapped = await client.post("/api/v1/sessions/birch/swap", json={"model": "other"})
        assert error_of(swapped) == (501, "not_there")
        assert (await client.delete("/api/v1/sessions/birch")).status_code == 204
        assert error_of(await client.delete("/api/v1/sessions/birch")) == (404, "not_found")


async def test_a_host_from_its_start_to_its_end() -> None:
    async with console() as client:
        wanted = {"model": "models/tiny", "memory_bytes": "2GiB"}
        started = await client.post("/api/v1/hosts", json=wanted)
        assert (started.status_code, started.json()["memory_bytes"]) == (201, 2 << 30)
        place = started.headers["location"]
        assert (await client.get(place)).json() == started.json()
        assert (await client.get(f"{place}/log")).json()["lines"][-1] == "hosting as alice"
        assert (await client.delete(place)).status_code == 204
        assert error_of(await client.get(place)) == (404, "not_found")
        assert error_of(await client.get(f"{place}/log")) == (404, "not_found")


async def test_events_are_told_one_by_one() -> None:
    async with console() as client:
        swarm = await client.get("/api/v1/swarm/events")
        session = await client.get("/api/v1/sessions/amber/events")
    assert swarm.headers["content-type"].startswith("text/event-stream")
    assert [name for name, _ in events_of(swarm.text)] == ["snapshot", "joined"]
    assert events_of(swarm.text)[0][1] == SWARM.model_dump()
    assert [name for name, _ in events_of(session.text)] == ["progress", "state"]


async def test_a_chat_passes_as_it_is() -> None:
    script = Script()
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "temperature": 0}
    async with console(script) as client:
        answer = await client.post("/api/v1/sessions/amber/chat/completions", json=body)
    assert (answer.status_code, answer.content) == (200, b"".join(EVENTS))
    assert answer.headers["x-request-id"] == "r1"
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert script.asked == [body]


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/api/v1/nothing", None, (404, "not_found")),
        ("GET", "/api/v1/sessions/birch", None, (404, "not_found")),
        ("GET", "/api/v1/sessions/birch/events", None, (404, "not_found")),
        ("GET", "/api/v1/sessions/Birch", None, (422, "invalid_request")),
        ("GET", "/api/v1/sessions/amber/timings/r2", None, (404, "not_found")),
        ("PUT", "/api/v1/swarm", "{}", (405, "invalid_request")),
        ("POST", "/api/v1/sessions", "{", (400, "invalid_request")),
        ("POST", "/api/v1/sessions", "{}", (422, "invalid_request")),
        ("POST", "/api/v1/sessions", '{"model": "tiny", "modle": "x"}', (422, "invalid_request")),
        ("POST", "/api/v1/sessions", '{"model": "--help"}', (422, "invalid_request")),
        ("POST", "/api/v1/sessions", '{"model": "tiny", "\\ud800": 1}', (422, "invalid_request")),
        ("POST", "/api/v1/sessions", '{"model": "tiny", "idle_s": NaN}', (422, "invalid_request")),
        ("POST", "/api/v1/sessions", '{"model": "tiny", "sequences": 1e999}', (422, "invalid_request")),
        ("POST", "/api/v1/sessions", f'{{"model": {"9" * 5000}}}', (400, "invalid_request")),
        ("POST", "/api/v1/sessions", "[" * 100_000, (400, "invalid_request")),
        ("POST", "/api/v1/sessions", "\xff", (400, "invalid_request")),
        ("POST", "/api/v1/hosts", '{"model": "tiny", "memory_bytes": "much"}', (422, "invalid_request")),
        ("POST", "/api/v1/hosts", '{"model": "tiny", "memory_bytes": 0}', (422, "invalid_request")),
        ("POST", "/api/v1/sessions/amber/chat/completions", '{"messages": []}', (422, "invalid_request")),
        ("POST", "/api/v1/sessions/birch/chat/completions", '{"messages": [{}]}', (404, "not_found")),
    ],
)
async def test_what_cannot_be(method: str, path: str, body: str | None, expected: tuple[int, str]) -> None:
    async with console() as client:
        response = await client.request(
            method, path, content=body, headers={"content-type": "application/json"}
        )
    assert error_of(response) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Unavailable("no swarm", remedy="start one"), (503, "unavailable")),
        (UsageError("no such directory", remedy="make it"), (400, "usage")),
        (EngineError("the engine died"), (502, "engine")),
        (EdgeError("something else"), (500, "internal")),
    ],
)
async def test_errors_of_sources(error: EdgeError, expected: tuple[int, str]) -> None:
    async with console(Script(error=error)) as client:
        responses = [
            await client.get("/api/v1/swarm"),
            await client.get("/api/v1/swarm/events"),
            await client.post("/api/v1/sessions/amber/chat/completions", json={"messages": [{}]}),
        ]
    assert [error_of(response) for response in responses] == [expected] * 3
    assert {response.json()["error"]["remedy"] for response in responses} == {error.remedy}
    assert ("retry-after" in responses[0].headers) == (expected[0] == 503)


async def test_too_many() -> None:
    async with console() as client:
        for _ in range(9):
            answer = await client.post("/api/v1/hosts", json={"model": "tiny", "memory_bytes": 1})
            assert answer.status_code == 201
        refused = await client.post("/api/v1/hosts", json={"model": "tiny", "memory_bytes": 1})
    assert error_of(refused) == (429, "busy")
    assert refused.headers["retry-after"]


async def test_a_defect_is_an_answer_and_tells_nothing() -> None:
    async with console(Script(defect=ValueError("secret"))) as client:
        response = await client.get("/api/v1/swarm")
    assert error_of(response) == (500, "internal")
    assert "secret" not in response.text
    assert response.headers["x-frame-options"] == "DENY"


async def test_bodies_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"model": "tiny", "name": "x" * MAX_BODY_BYTES}
    async with console() as client:
        assert error_of(await client.post("/api/v1/sessions", json=body)) == (413, "invalid_request")

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b" " * (MAX_BODY_BYTES // 2)

        headers = {"content-type": "application/json"}
        chunked = await client.post("/api/v1/sessions", content=parts(), headers=headers)
        assert error_of(chunked) == (413, "invalid_request")
        monkeypatch.setattr(gatekeeper, "MAX_UPLOADS_BYTES", 10)
        assert error_of(await client.post("/api/v1/sessions", json=body | {"name": "x"})) == (429, "busy")


async def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gatekeeper, "UPLOAD_S", 0.05)

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await trio.sleep(30)

    async with console() as client:
        headers = {"content-type": "application/json"}
        response = await client.post("/api/v1/sessions", content=never(), headers=headers)
    assert error_of(response) == (408, "invalid_request")


async def test_pages_of_others_are_refused() -> None:
    async with console() as client:
        for headers in (
            {"host": "evil.example"},
            {"origin": "http://evil.example"},
            {"origin": "http://127.0.0.1:8000"},
            {"origin": "null"},
            {"sec-fetch-site": "same-site"},
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        ):
            response = await client.post("/api/v1/hosts", json={}, headers=headers)
            assert error_of(response) == (403, "permission"), headers
        form = await client.post("/api/v1/hosts", data={"model": "tiny"})
        assert error_of(form) == (415, "invalid_request")
        own = {"origin": BASE, "sec-fetch-site": "same-origin"}
        wanted = {"model": "tiny", "memory_bytes": 1}
        assert (await client.post("/api/v1/hosts", json=wanted, headers=own)).status_code == 201


async def test_a_token_is_demanded() -> None:
    async with console(token=TOKEN) as client:
        assert error_of(await client.get("/api/v1/swarm")) == (401, "authentication")
        wrong = await client.get("/api/v1/swarm", headers={"authorization": "Bearer no"})
        assert error_of(wrong) == (401, "authentication")
        assert wrong.headers["www-authenticate"] == "Bearer"
        right = await client.get("/api/v1/swarm", headers={"authorization": f"Bearer {TOKEN}"})
        assert right.status_code == 200
        assert (await client.get("/health")).status_code == 200
        page = await client.get("/", headers={"accept": "text/html"})
        assert (page.status_code, page.headers["location"]) == (303, "/login?next=/")


async def test_logging_in() -> None:
    async with console(token=TOKEN) as client:
        assert (await client.get("/login")).status_code == 200
        headers = {"content-type": "application/json"}
        odd = await client.post("/api/v1/login", content='{"token": "\\ud800"}', headers=headers)
        assert error_of(odd) == (422, "invalid_request")
        refused = await client.post("/api/v1/login", json={"token": "no"})
        assert error_of(refused) == (401, "authentication")
        assert "set-cookie" not in refused.headers
        answer = await client.post("/api/v1/login", json={"token": TOKEN})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("edgellm-console-8643=")
        assert {"httponly", "samesite=strict"} <= {part.strip().lower() for part in cookie.split(";")}
        assert TOKEN not in cookie
        assert (await client.get("/api/v1/swarm")).status_code == 200
        # Cookies of other ports of this machine come along, well formed or not.
        mine = {"cookie": f"other={{x; y]; edgellm-console-8643={client.cookies['edgellm-console-8643']}"}
        client.cookies.clear()
        assert (await client.get("/api/v1/swarm", headers=mine)).status_code == 200


async def test_headers_that_browsers_keep_to() -> None:
    async with console() as client:
        for path in ("/", "/api/v1/swarm", "/nothing"):
            headers = (await client.get(path)).headers
            assert "script-src 'self'" in headers["content-security-policy"]
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-frame-options"] == "DENY"
            assert headers["cache-control"] == "no-store"


async def test_who_leaves_frees_what_was_held() -> None:
    script = Script(endless=True)
    async with served(script) as client:
        async with client.stream("GET", "/api/v1/swarm/events") as events:
            async for _ in events.aiter_raw():
                break
            assert script.watching == 1
        await until(lambda: script.watching == 0)
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        path = "/api/v1/sessions/amber/chat/completions"
        async with client.stream("POST", path, json=body) as answer:
            async for part in answer.aiter_raw():
                assert part == EVENTS[0]
                break
            assert script.asking == 1
        await until(lambda: script.asking == 0)


async def test_an_answer_that_broke_off_is_never_ended() -> None:
    async with served(Script(breaks_off=True)) as client:
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        said = b""
        async with client.stream("POST", "/api/v1/sessions/amber/chat/completions", json=body) as answer:
            with pytest.raises(httpx.RemoteProtocolError):
                async for part in answer.aiter_raw():
                    said += part
    assert said.startswith(EVENTS[0])
    assert json.loads(said.split(b"data: ")[-1])["error"]["type"] == "engine"


async def test_it_says_of_itself_what_there_is() -> None:
    async with console() as client:
        spec = (await client.get("/api/v1/openapi.json")).json()
    assert {
        "/health",
        "/api/v1/swarm",
        "/api/v1/swarm/events",
        "/api/v1/sessions/{name}/chat/completions",
        "/api/v1/hosts/{host}/log",
        "/api/v1/kv",
    } <= set(spec["paths"])
    assert not [path for path in spec["paths"] if path.startswith("/console") or path == "/"]
