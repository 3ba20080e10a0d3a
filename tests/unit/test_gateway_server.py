"""A session's endpoint over real sockets, in front of an engine's API that says what its script says."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h11
import pytest
import trio

from edgellm.gateway import client, server
from edgellm.gateway.guard import MAX_BODY_BYTES, Rules
from edgellm.gateway.request_log import RequestLog
from edgellm.gateway.server import Gateway
from edgellm.gateway.state import Broken, Closing, Ready, Starting, State, Swapping

EVENTS = [b'data: {"n": 1}\n\n', b'data: {"n": 2}\n\n', b"data: [DONE]\n\n"]


@contextmanager
def suppress_broken() -> Iterator[None]:
    try:
        yield
    except* trio.BrokenResourceError:
        pass


@dataclass
class EngineApi:
    """Answers each request with events; keeps what it was asked."""

    pause_s: float = 0.0
    breaks_after: int | None = None
    breaks_at_once: bool = False
    says: bytes | None = None
    """Said after the head, as it is, in place of the events."""
    asked: list[tuple[bytes, dict[bytes, bytes], bytes]] = field(default_factory=list)
    running: int = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        body = b""
        request: h11.Request | None = None
        try:
            while not isinstance(event := await self._next(connection, stream), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
        except h11.RemoteProtocolError:
            return  # it went before it had asked
        assert request is not None
        self.asked.append((bytes(request.target), {bytes(n): bytes(v) for n, v in request.headers}, body))
        self.running += 1
        try:
            with suppress_broken():
                await self._answer(connection, stream)
        finally:
            self.running -= 1
            await stream.aclose()

    async def _answer(self, connection: h11.Connection, stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await stream.receive_some(1)
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            if self.breaks_at_once:
                nursery.cancel_scope.cancel()
                return
            kind = ("content-type", "text/event-stream; charset=utf-8")
            await self._send(connection, stream, h11.Response(status_code=200, headers=[kind]))
            if self.says is not None:
                await stream.send_all(self.says)
                nursery.cancel_scope.cancel()
                return
            for number, data in enumerate(EVENTS):
                if number == self.breaks_after:
                    nursery.cancel_scope.cancel()
                    return
                await self._send(connection, stream, h11.Data(data=data))
                await trio.sleep(self.pause_s)
            await self._send(connection, stream, h11.EndOfMessage())
            nursery.cancel_scope.cancel()

    async def _send(self, connection: h11.Connection, stream: trio.SocketStream, event: h11.Event) -> None:
        if data := connection.send(event):
            await stream.send_all(data)

    async def _next(self, connection: h11.Connection, stream: trio.SocketStream) -> object:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(65536))
        return event


@dataclass
class Endpoint:
    port: int
    engine: EngineApi
    state: State
    counted: int = 0
    """Requests that the engine has now."""
    begun: int = 0
    ready: State | None = None

    @contextmanager
    def count(self) -> Iterator[None]:
        self.counted += 1
        self.begun += 1
        try:
            yield
        finally:
            self.counted -= 1

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    def raw(
        self, method: str = "POST", path: str = "/v1/chat/completions", body: bytes = b"{}", **headers: str
    ) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if "transfer_encoding" not in headers and "content_length" not in headers:
            lines.append(f"content-length: {len(body)}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def ask(self, *arguments: str, stream: trio.SocketStream | None = None, **options: str) -> Answer:
        own = stream or await self.connect()
        await own.send_all(self.raw(*arguments, **options))  # type: ignore[arg-type]
        answer = await read_answer(own)
        if stream is None:
            await own.aclose()
        return answer


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool

    @property
    def error(self) -> dict[str, object]:
        error: dict[str, object] = json.loads(self.body)["error"]
        return error


async def read_answer(stream: trio.SocketStream) -> Answer:
    """One answer; `whole` is False where the connection ended in the middle."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    answer = Answer(0, {}, b"", False)
    try:
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Response):
                answer.status = event.status_code
                answer.headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                answer.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                answer.whole = True
                return answer
            elif isinstance(event, h11.ConnectionClosed):
                return answer
    except h11.RemoteProtocolError:
        return answer


@asynccontextmanager
async def endpoint(
    engine: EngineApi | None = None,
    *,
    api_key: str | None = None,
    most_at_once: int = 8,
    with_console: bool = False,
    journal: RequestLog | None = None,
) -> AsyncIterator[Endpoint]:
    engine = engine or EngineApi()
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "api.sock")
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(path)
        listening.listen()
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        ready = Ready(path, "alice 0-3, bob 4-7")
        it = Endpoint(port, engine, ready, ready=ready)

        async def console() -> str:
            return path

        gateway = Gateway(
            Rules(port, api_key),
            lambda: it.state,
            it.count,
            most_at_once=most_at_once,
            console=console if with_console else None,
            journal=journal,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, engine.serve, [trio.SocketListener(listening)])
            nursery.start_soon(gateway.serve, listeners[0])
            yield it
            nursery.cancel_scope.cancel()


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.005)


async def test_an_answer_passes_as_it_is_with_its_route() -> None:
    async with endpoint(api_key="secret") as it:
        answer = await it.ask(body=b'{"model": "tiny"}', authorization="Bearer secret", cookie="a=b")  # type: ignore[arg-type]
        assert (answer.status, answer.body, answer.whole) == (200, b"".join(EVENTS), True)
        assert answer.headers["x-edgellm-route"] == "alice 0-3, bob 4-7"
        assert answer.headers["content-type"].startswith("text/event-stream")
        target, headers, body = it.engine.asked[0]
        assert (target, body) == (b"/v1/chat/completions", b'{"model": "tiny"}')
        # The engine runs other people's code; the key is none of its business.
        assert not {b"authorization", b"cookie", b"x-api-key"} & headers.keys()
        assert it.begun == 1
        await until(lambda: it.counted == 0)


async def test_events_come_as_they_are_made() -> None:
    async with endpoint(EngineApi(pause_s=0.2)) as it:
        stream = await it.connect()
        begun = trio.current_time()
        await stream.send_all(it.raw())
        received = b""
        while EVENTS[0] not in received:
            received += await stream.receive_some(65536)
        assert trio.current_time() - begun < 0.15
        assert EVENTS[1] not in received
        await stream.aclose()


async def test_one_connection_serves_many_requests_also_refused_ones() -> None:
    async with endpoint() as it:
        stream = await it.connect()
        for _ in range(3):
            assert (await it.ask(stream=stream)).status == 200
            assert (await it.ask("POST", "/nowhere", stream=stream)).status == 404
            assert (await it.ask("GET", "/health", body=b"", stream=stream)).status == 200  # type: ignore[arg-type]
        await stream.aclose()
        assert len(it.engine.asked) == 3


async def test_requests_one_behind_the_other_are_all_answered() -> None:
    async with endpoint() as it:
        stream = await it.connect()
        await stream.send_all(it.raw() + it.raw("POST", "/nowhere"))
        received = b""
        while b"not_found_error" not in received:
            received += await stream.receive_some(65536)
        assert received.count(b"HTTP/1.1 200") == 1
        await stream.aclose()


async def test_a_client_that_goes_frees_its_slot_at_once() -> None:
    async with endpoint(EngineApi(pause_s=60), most_at_once=1) as it:
        for _ in range(5):
            stream = await it.connect()
            await stream.send_all(it.raw())
            await until(lambda: it.engine.running == 1)
            assert (await it.ask()).status == 429
            await stream.aclose()
            await until(lambda: it.engine.running == 0)


async def test_a_full_session_says_when_to_come_again() -> None:
    async with endpoint(EngineApi(pause_s=60), most_at_once=2) as it:
        streams = [await it.connect() for _ in range(2)]
        for stream in streams:
            await stream.send_all(it.raw())
        await until(lambda: it.engine.running == 2)
        answer = await it.ask()
        assert (answer.status, answer.error["type"]) == (429, "rate_limit_error")
        assert int(answer.headers["retry-after"]) > 0
        for stream in streams:
            await stream.aclose()


async def test_before_the_cluster_is_there_it_says_how_far_it_is() -> None:
    async with endpoint() as it:
        it.state = Starting("alice loading weights")
        answer = await it.ask()
        assert answer.status == 503
        assert "alice loading weights" in str(answer.error["message"])
        assert "retry-after" in answer.headers
        health = await it.ask("GET", "/health", body=b"")  # type: ignore[arg-type]
        assert (health.status, json.loads(health.body)["state"]) == (503, "starting")
        it.state = Closing("its hosts have lent 2h together")
        answer = await it.ask()
        assert answer.status == 503
        assert answer.error["message"] == "the session closes: its hosts have lent 2h together"
        assert "retry-after" not in answer.headers
        assert json.loads((await it.ask("GET", "/health", body=b"")).body)["state"] == "closing"  # type: ignore[arg-type]
        it.state = Broken("its engine serves no API")
        assert (await it.ask()).status == 501
        assert not it.engine.asked


async def test_while_one_cluster_makes_room_for_another_requests_wait() -> None:
    async with endpoint(most_at_once=2) as it:
        assert it.ready is not None
        it.state = Swapping("tiny-b: alice loading weights")
        asking, leaving = await it.connect(), await it.connect()
        await asking.send_all(it.raw())
        await leaving.send_all(it.raw())
        with trio.move_on_after(0.3) as waited:
            await asking.receive_some(1)
        assert waited.cancelled_caught
        # They hold their places, until they go.
        assert (await it.ask()).status == 429
        health = await it.ask("GET", "/health", body=b"")  # type: ignore[arg-type]
        assert (health.status, json.loads(health.body)["state"]) == (200, "swapping")
        await leaving.aclose()
        await trio.sleep(0.1)
        it.state = it.ready
        answer = await read_answer(asking)
        assert (answer.status, answer.whole) == (200, True)
        assert len(it.engine.asked) == 1


async def test_a_request_that_waited_in_vain_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SWAP_S", 0.2)
    async with endpoint() as it:
        it.state = Swapping("tiny-b: alice loading weights")
        answer = await it.ask()
        assert (answer.status, "alice loading weights" in str(answer.error["message"])) == (503, True)


CONSOLE_PATHS = ("/", "/console/sessions/amber", "/api/v1/sessions", "/login")


@pytest.mark.parametrize("path", CONSOLE_PATHS)
async def test_pages_are_the_consoles_and_hold_no_place(path: str) -> None:
    async with endpoint(with_console=True, most_at_once=0) as it:
        answer = await it.ask("GET", path, body=b"", cookie="a=b", sec_fetch_site="same-origin")  # type: ignore[arg-type]
        assert (answer.status, answer.whole, it.begun) == (200, True, 0)
        target, headers, _ = it.engine.asked[0]
        assert target == path.encode()
        assert headers[b"host"] == f"127.0.0.1:{it.port}".encode()
        assert (headers[b"cookie"], headers[b"sec-fetch-site"]) == (b"a=b", b"same-origin")


async def test_pages_of_others_and_other_users_do_not_even_begin_the_console(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with endpoint(with_console=True) as it:
        other = await it.ask("GET", "/", body=b"", origin="http://evil.example")  # type: ignore[arg-type]
        assert other.status == 403
        large = await it.ask("POST", "/api/v1/hosts", body=b"x" * (server.MAX_CONSOLE_BYTES + 1))  # type: ignore[arg-type]
        assert large.status == 413
        monkeypatch.setattr(server, "is_of_same_user", lambda address: False)
        assert (await it.ask("GET", "/", body=b"")).status == 403  # type: ignore[arg-type]
        assert not it.engine.asked
    async with endpoint(with_console=True, api_key="secret") as it:
        # Its own rules ask for the key.
        assert (await it.ask("GET", "/", body=b"")).status == 200  # type: ignore[arg-type]


async def test_figures_for_prometheus_count_answers_by_path_and_status() -> None:
    async with endpoint(api_key="secret") as it:
        await it.ask(authorization="Bearer secret")
        await it.ask()
        await it.ask("GET", "/nowhere", body=b"")  # type: ignore[arg-type]
        assert (await it.ask("GET", "/metrics", body=b"")).status == 401  # type: ignore[arg-type]
        answer = await it.ask("GET", "/metrics", body=b"", authorization="Bearer secret")  # type: ignore[arg-type]
        text = answer.body.decode()
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        for line in (
            'edgellm_gateway_requests_total{path="/v1/chat/completions",status="200"} 1.0',
            'edgellm_gateway_requests_total{path="/v1/chat/completions",status="401"} 1.0',
            'edgellm_gateway_requests_total{path="other",status="404"} 1.0',
            "edgellm_gateway_connections 1.0",
        ):
            assert line in text
        # Of the engine, which is asked for its own.
        assert text.endswith("data: [DONE]\n\n")


async def test_an_engine_that_breaks_off_is_said_as_far_as_it_can_be() -> None:
    async with endpoint(EngineApi(breaks_at_once=True)) as it:
        answer = await it.ask()
        assert (answer.status, answer.error["type"]) == (502, "api_error")
    for path, name in (("/v1/chat/completions", None), ("/v1/messages", "event: error")):
        async with endpoint(EngineApi(breaks_after=1)) as it:
            answer = await it.ask("POST", path)
            assert answer.status == 200
            # Nobody takes it for the end of an answer.
            assert not answer.whole
            *before, last = answer.body.decode().strip().splitlines()
            assert json.loads(last.removeprefix("data: "))["error"]["type"] == "api_error"
            assert (before[-1] == name) == (name is not None)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize(
    "said", [b"40\r\ndata: half", b"what is this?", b"0\r\nTrailer: x\r\n\r\n", b"5\r\nlonger\r\n"]
)
async def test_what_an_engine_says_only_in_part_or_not_in_chunks_is_not_passed_on(said: bytes) -> None:
    async with endpoint(EngineApi(says=chunk(EVENTS[0]) + said)) as it:
        answer = await it.ask()
        assert not answer.whole
        event, error = filter(None, answer.body.split(b"\n\n"))
        assert event == EVENTS[0].strip()
        assert json.loads(error.removeprefix(b"data: "))["error"]["type"] == "api_error"


async def test_a_large_event_that_breaks_off_is_not_ended() -> None:
    async with endpoint(EngineApi(says=chunk(b"x" * 200_000)[:150_000])) as it:
        answer = await it.ask()
        assert not answer.whole
        # What has been promised of it would be taken for a part of the event.
        assert b"error" not in answer.body


async def test_what_an_engine_says_after_its_answer_reaches_nobody() -> None:
    false = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfalse"
    async with endpoint(EngineApi(says=chunk(EVENTS[0]) + b"0\r\n\r\n" + false)) as it:
        stream = await it.connect()
        for _ in range(2):
            answer = await it.ask(stream=stream)
            assert (answer.whole, answer.body) == (True, EVENTS[0])
        health = await it.ask("GET", "/health", body=b"", stream=stream)  # type: ignore[arg-type]
        assert json.loads(health.body)["state"] == "ready"
        await stream.aclose()


async def test_a_client_of_the_first_version_gets_no_chunks() -> None:
    async with endpoint() as it:
        stream = await it.connect()
        await stream.send_all(it.raw().replace(b"HTTP/1.1", b"HTTP/1.0"))
        received = b"".join([part async for part in stream])
        assert received.endswith(b"\r\n\r\n" + b"".join(EVENTS))
        await stream.aclose()


async def test_a_client_that_reads_late_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__name__ + ".EVENTS", [bytes([number]) * 700_000 for number in range(30)])
    async with endpoint() as it:
        stream = await it.connect()
        await stream.send_all(it.raw())
        await trio.sleep(0.3)
        answer = await read_answer(stream)
        assert (answer.whole, answer.body) == (True, b"".join(EVENTS))
        await stream.aclose()


async def test_a_client_that_goes_while_it_does_not_read_frees_its_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(__name__ + ".EVENTS", [b"x" * 1_000_000] * 30)
    async with endpoint(most_at_once=1) as it:
        for _ in range(3):
            stream = await it.connect()
            await stream.send_all(it.raw())
            await until(lambda: it.engine.running == 1)
            await trio.sleep(0.1)
            await stream.aclose()
            await until(lambda: it.engine.running == 0 and it.counted == 0)


async def test_a_client_that_closes_its_sending_side_is_taken_for_gone() -> None:
    async with endpoint(EngineApi(pause_s=60)) as it:
        stream = await it.connect()
        await stream.send_all(it.raw())
        await until(lambda: it.engine.running == 1)
        await stream.send_eof()
        await until(lambda: it.engine.running == 0 and it.counted == 0)
        await stream.aclose()


async def test_an_engine_that_is_not_there_is_said() -> None:
    async with endpoint() as it:
        it.state = Ready("/nowhere/api.sock", "")
        assert (await it.ask()).status == 502


async def test_a_body_without_a_length_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_BODY_BYTES", 1 << 16)
    async with endpoint() as it:
        stream = await it.connect()
        await stream.send_all(it.raw(transfer_encoding="chunked", body=b""))  # type: ignore[arg-type]
        chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
        with trio.move_on_after(5):
            for _ in range(6):
                await stream.send_all(chunk)
        assert (await read_answer(stream)).status == 413
        await stream.aclose()
        assert not it.engine.asked


@pytest.mark.parametrize("size", [300_000, 4_000_000, MAX_BODY_BYTES + 1_000_000])
async def test_a_refusal_is_read_by_who_sends_much_and_reads_later(size: int) -> None:
    async with endpoint() as it:
        it.state = Starting("weights")
        stream = await it.connect()
        # All of it before the first look at an answer, as many clients do.
        with trio.fail_after(10):
            await stream.send_all(it.raw(body=bytes(size)))  # type: ignore[arg-type]
            answer = await read_answer(stream)
        assert answer.status == (503 if size < MAX_BODY_BYTES else 413)
        assert answer.whole
        await stream.aclose()


async def test_a_large_question_arrives_whole() -> None:
    async with endpoint() as it:
        body = b'{"picture": "' + b"x" * 3_000_000 + b'"}'
        assert (await it.ask(body=body)).status == 200  # type: ignore[arg-type]
        assert it.engine.asked[0][2] == body


async def test_an_upload_holds_no_place_and_one_that_is_left_leaves_nothing() -> None:
    async with endpoint(most_at_once=1) as it:
        streams = [await it.connect() for _ in range(3)]
        for stream in streams:
            await stream.send_all(it.raw(content_length="1000000", body=b"{"))  # type: ignore[arg-type]
        assert (await it.ask()).status == 200
        for stream in streams:
            await stream.aclose()
        assert (await it.ask()).status == 200
        assert it.begun == 2


async def test_all_uploads_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_UPLOADS_BYTES", 100_000)
    async with endpoint() as it:
        stream = await it.connect()
        await stream.send_all(it.raw(content_length="1000000", body=bytes(80_000)))  # type: ignore[arg-type]
        await trio.sleep(0.1)
        assert (await it.ask(body=bytes(50_000))).status == 429  # type: ignore[arg-type]
        await stream.aclose()
        await trio.sleep(0.1)
        assert (await it.ask(body=bytes(50_000))).status == 200  # type: ignore[arg-type]


async def test_an_engine_that_does_not_read_frees_the_place_of_a_client_that_goes() -> None:
    async with endpoint(most_at_once=1) as it:
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory) / "stuck.sock")
            listening = trio.socket.socket(trio.socket.AF_UNIX)
            await listening.bind(path)
            listening.listen()
            it.state = Ready(path, "")
            stream = await it.connect()
            await stream.send_all(it.raw(body=bytes(3_000_000)))  # type: ignore[arg-type]
            await until(lambda: it.counted == 1)
            await stream.aclose()
            await until(lambda: it.counted == 0)
            listening.close()


async def test_a_client_that_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "STALL_S", 0.3)
    engine = EngineApi()
    monkeypatch.setattr(__name__ + ".EVENTS", [b"x" * 1_000_000] * 50)
    async with endpoint(engine) as it:
        stream = await it.connect()
        await stream.send_all(it.raw())
        await until(lambda: it.counted == 1)
        await until(lambda: it.counted == 0 and engine.running == 0)
        await stream.aclose()


@pytest.mark.parametrize("route", ["", " 0-3,  bob 4-7", "\u00e4 0-3\r\nx: y", "  "])
async def test_whatever_hosts_call_themselves_the_answer_comes(route: str) -> None:
    async with endpoint() as it:
        assert isinstance(it.ready, Ready)
        it.state = Ready(it.ready.socket, route)
        answer = await it.ask()
        assert (answer.status, answer.whole) == (200, True)
        assert "x" not in answer.headers


async def test_heads_have_no_body_and_the_connection_goes_on() -> None:
    async with endpoint() as it:
        stream = await it.connect()
        for path, status in (("/health", b"200"), ("/v1/models", b"405"), ("/health", b"200")):
            await stream.send_all(it.raw("HEAD", path, b""))
            received = b""
            with trio.fail_after(3):
                while b"\r\n\r\n" not in received:
                    received += await stream.receive_some(65536)
            assert received.startswith(b"HTTP/1.1 " + status)
            assert received.endswith(b"\r\n\r\n")
        await stream.aclose()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: ten\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 70000 + b"\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: PORT\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: PORT\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: PORT\r\nOrigin: http://evil\r\nOrigin: http://PORT\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused_and_the_endpoint_goes_on(said: bytes) -> None:
    async with endpoint() as it:
        stream = await it.connect()
        await stream.send_all(said.replace(b"PORT", f"127.0.0.1:{it.port}".encode()))
        with trio.fail_after(5):
            answer = await read_answer(stream)
        assert 400 <= answer.status < 500
        await stream.aclose()
        assert (await it.ask()).status == 200
        assert len(it.engine.asked) == 1
        await until(lambda: it.counted == 0)


async def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "HEAD_S", 0.1)
    monkeypatch.setattr(client, "KEPT_S", 0.1)
    monkeypatch.setattr(server, "UPLOAD_S", 0.2)
    monkeypatch.setattr(client, "LINGER_S", 0.2)
    async with endpoint() as it:
        for begun in (b"", b"POST /v1/comp", it.raw(content_length="10", body=b"{")):  # type: ignore[arg-type]
            stream = await it.connect()
            await stream.send_all(begun)
            with trio.fail_after(3):
                while await stream.receive_some(65536):
                    pass
            await stream.aclose()
        assert (await it.ask()).status == 200
