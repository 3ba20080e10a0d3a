"""Connections of a session's endpoint, and the way of one request to the engine and back.

A request is read whole before it takes one of the session's places. A client that goes frees its place at once: its connection
is watched while the engine answers, and the one to the engine is closed with it, upon which the engine drops the request. One
that closes its sending side only is taken for gone, too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TypeAlias

import h11
import structlog
import trio

from edgellm.gateway.guard import MAX_BODY_BYTES, Head, Refusal, Rules, refused, too_large

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 256
MAX_HEAD_BYTES = 32 << 10
MAX_UPLOADS_BYTES = 256 << 20
"""Of all requests that are being read."""
HEAD_S = 15.0
"""For a request's head, once its first byte is there."""
KEPT_S = 75.0
"""How long a connection stays between two requests."""
UPLOAD_S = 120.0
"""For a whole request body."""
STALL_S = 60.0
"""How long a client may not read its answer, or the engine its request."""
LINGER_S = 3.0
"""How long what a refused client still sends is read, so that it reads the refusal and not of a broken connection."""
CONNECT_S = 5.0
RETRY_S = 2
_PART_BYTES = 64 << 10
_ASKED = frozenset(
    (b"content-type", b"accept", b"user-agent", b"x-request-id", b"anthropic-version", b"anthropic-beta")
)
"""Headers that the engine gets. Keys, cookies and origins are for this endpoint; others would change how it schedules."""
_ANSWERED = frozenset(
    (
        b"content-type",
        b"content-length",
        b"transfer-encoding",
        b"cache-control",
        b"x-request-id",
        b"retry-after",
    )
)
"""Headers that clients get from the engine. Cookies of 127.0.0.1 would reach every port of it."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine answers."""

    socket: str
    """Where its API is served."""
    route: str
    """Who runs which layers, for people."""


@dataclass(frozen=True, slots=True)
class Starting:
    detail: str


@dataclass(frozen=True, slots=True)
class Broken:
    reason: str


State: TypeAlias = Ready | Starting | Broken


class Gateway:
    """Serves requests as long as `serve` runs."""

    def __init__(
        self,
        rules: Rules,
        state: Callable[[], State],
        counted: Callable[[], AbstractContextManager[None]],
        *,
        most_at_once: int,
    ) -> None:
        """`counted` is entered for each request that the engine gets; of these there are `most_at_once` at most."""
        self._rules = rules
        self._state = state
        self._counted = counted
        self._most_at_once = most_at_once
        self._running = 0
        self._connections = 0
        self._uploads_bytes = 0

    async def serve(self, listener: trio.SocketListener) -> None:
        """Until it is cancelled."""
        await trio.serve_listeners(self._connected, [listener])

    async def _connected(self, stream: trio.SocketStream) -> None:
        self._connections += 1
        client = _Client(stream)
        try:
            await self._requests(client)
        except Exception:
            log.exception("a connection to the endpoint failed")
        finally:
            self._connections -= 1
            with trio.move_on_after(LINGER_S):
                await client.linger()
            with trio.move_on_after(1):
                await stream.aclose()

    async def _requests(self, client: _Client) -> None:
        try:
            if self._connections > MAX_CONNECTIONS:
                await client.refuse(_busy("too many connections"), "")
                return
            while await self._one_request(client):
                pass
        except* (
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.TooSlowError,
            h11.RemoteProtocolError,
        ):
            pass  # gone in the middle of something, or as good as gone

    async def _one_request(self, client: _Client) -> bool:
        """Whether another one may follow on this connection."""
        try:
            request = await client.request()
        except h11.RemoteProtocolError as error:
            # Told to a client that may be one; what it said is no HTTP.
            with suppress(h11.LocalProtocolError):
                await client.refuse(Refusal(error.error_status_hint, "invalid_request_error", str(error)), "")
            return False
        if request is None:
            return False
        head = _head(request)
        if (refusal := refused(head, self._rules)) is not None:
            await client.refuse(refusal, head.path)
        elif head.path == "/health":
            state = self._state()
            await client.say(200 if isinstance(state, Ready) else 503, _health(state))
        else:
            await self._served(client, request, head)
        return await client.again()

    async def _served(self, client: _Client, request: h11.Request, head: Head) -> None:
        state = self._state()
        refusal = self._no_place(state)
        body = b""
        if refusal is None:
            try:
                body = await self._body(client)
            except _TooLarge:
                refusal = too_large()
            except _NoRoom:
                refusal = _busy("too much is being sent to this session at once")
            except h11.RemoteProtocolError as error:
                refusal = Refusal(400, "invalid_request_error", str(error))
            else:
                # Meanwhile others may have come, or the cluster gone.
                state = self._state()
                refusal = self._no_place(state)
        if refusal is not None or not isinstance(state, Ready):
            assert refusal is not None
            await client.refuse(refusal, head.path)
            return
        self._running += 1
        try:
            with self._counted():
                await _forward(client, request, head, body, state)
        finally:
            self._running -= 1

    def _no_place(self, state: State) -> Refusal | None:
        if isinstance(state, Broken):
            return Refusal(501, "api_error", f"this session has no API: {state.reason}")
        if isinstance(state, Starting):
            message = f"the session is not ready: {state.detail}"
            return Refusal(503, "overloaded_error", message, (("retry-after", str(RETRY_S)),))
        if self._running >= self._most_at_once:
            return _busy(f"{self._running} requests are running, as many as this session takes")
        return None

    async def _body(self, client: _Client) -> bytes:
        """The whole body of a request. Raises _TooLarge, _NoRoom, TooSlowError, h11.RemoteProtocolError."""
        parts = []
        size = 0
        try:
            with trio.fail_after(UPLOAD_S):
                while (part := await client.body()) is not None:
                    size += len(part)
                    self._uploads_bytes += len(part)
                    if size > MAX_BODY_BYTES:
                        raise _TooLarge
                    if self._uploads_bytes > MAX_UPLOADS_BYTES:
                        raise _NoRoom
                    parts.append(part)
        finally:
            self._uploads_bytes -= size
        return b"".join(parts)


class _TooLarge(Exception):
    pass


class _NoRoom(Exception):
    pass


class _Client:
    """A connection of somebody who asks."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._method = b""
        self._is_gone = False

    async def request(self) -> h11.Request | None:
        """The next one; None where none comes. Raises h11.RemoteProtocolError, TooSlowError."""
        event = self._http.next_event()
        if event is h11.NEED_DATA:
            with trio.move_on_after(KEPT_S) as kept:
                await self._receive()
            if kept.cancelled_caught:
                return None
            with trio.fail_after(HEAD_S):
                event = await self._next()
        if not isinstance(event, h11.Request):
            return None
        self._method = bytes(event.method)
        return event

    async def body(self) -> bytes | None:
        """The next part of a request's body; None at its end. Raises h11.RemoteProtocolError."""
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        event = await self._next()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return None
        raise h11.RemoteProtocolError("a request that ended in the middle")

    async def gone(self) -> None:
        """Returns when the client has closed its side. A request that it sends meanwhile is kept, up to a head's length."""
        kept = 0
        while kept <= MAX_HEAD_BYTES:
            data = await self._stream.receive_some(_PART_BYTES)
            self._http.receive_data(data)
            if not data:
                self._is_gone = True
                return
            kept += len(data)
        await trio.sleep_forever()

    async def send(self, event: h11.Event) -> None:
        """Raises TooSlowError where the client does not read."""
        with trio.fail_after(STALL_S):
            await self._send(event)

    async def say(self, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        """A whole answer of ours."""
        own = [("content-type", "application/json"), ("content-length", str(len(body)))]
        await self.send(h11.Response(status_code=status, headers=[*own, *headers]))
        if self._method != b"HEAD":
            await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())

    async def refuse(self, refusal: Refusal, path: str) -> None:
        await self.say(refusal.status, refusal.body(path), refusal.headers)

    @property
    def has_begun_to_answer(self) -> bool:
        return self._http.our_state is not h11.SEND_RESPONSE

    async def again(self) -> bool:
        """Whether the connection can take another request: what was not read of this one is read by then, within limits."""
        unread = 0
        with trio.move_on_after(LINGER_S):
            while self._http.their_state is h11.SEND_BODY and self._http.our_state is h11.DONE:
                unread += len(await self.body() or b"")
                if unread > MAX_BODY_BYTES:
                    return False
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def linger(self) -> None:
        """Ends what is sent, and reads what still comes: closing with something unread breaks the connection, and the client
        would lose an answer that it has not read yet.
        """
        if self._is_gone:
            return
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._stream.send_eof()
            unread = 0
            while unread < 2 * MAX_BODY_BYTES and (data := await self._stream.receive_some(_PART_BYTES)):
                unread += len(data)

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await self._receive()
        return event  # type: ignore[return-value] # NEED_DATA is out

    async def _receive(self) -> None:
        data = await self._stream.receive_some(_PART_BYTES)
        self._is_gone = not data
        self._http.receive_data(data)

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            await self._stream.send_all(data)


async def _forward(client: _Client, request: h11.Request, head: Head, body: bytes, state: Ready) -> None:
    """Passes the request on, and the answer back as it comes."""
    try:
        with trio.fail_after(CONNECT_S):
            stream = await trio.open_unix_socket(state.socket)
    except (OSError, trio.TooSlowError):
        await client.refuse(Refusal(502, "api_error", "the session's engine does not answer"), head.path)
        return
    async with stream, trio.open_nursery() as nursery:

        async def watch() -> None:
            await client.gone()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        engine = _Engine(stream)
        try:
            await engine.ask(request, body)
            await engine.answer(client, state.route)
        except _BrokenOff:
            await _say_broken_off(client, head, streams_events=engine.streams_events)
        nursery.cancel_scope.cancel()


class _BrokenOff(Exception):
    """The engine did."""


class _Engine:
    """The connection to the engine's API, for one request."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self.streams_events = False

    async def ask(self, request: h11.Request, body: bytes) -> None:
        """Sends the request. Raises _BrokenOff where the engine does not take it."""
        headers = [(bytes(name), bytes(value)) for name, value in request.headers if bytes(name) in _ASKED]
        own = [(b"host", b"engine"), (b"connection", b"close"), (b"content-length", str(len(body)).encode())]
        asked = h11.Request(method=request.method, target=request.target, headers=[*own, *headers])
        data = b"".join(
            self._http.send(event) or b"" for event in (asked, h11.Data(data=body), h11.EndOfMessage())
        )
        try:
            with trio.fail_after(STALL_S):
                await self._stream.send_all(data)
        except trio.TooSlowError as error:
            raise _BrokenOff from error
        except trio.BrokenResourceError:
            pass  # it may have answered before it had read everything

    async def answer(self, client: _Client, route: str) -> None:
        """Passes the answer on. Raises _BrokenOff where the engine does not end it."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                headers = [
                    (bytes(name), bytes(value)) for name, value in event.headers if bytes(name) in _ANSWERED
                ]
                self.streams_events = any(
                    name == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in headers
                )
                if said := " ".join(route.encode("ascii", "replace").decode().split()):
                    headers.append((b"x-edgellm-route", said.encode()))
                await client.send(h11.Response(status_code=event.status_code, headers=headers))
            elif isinstance(event, h11.Data):
                await client.send(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await client.send(h11.EndOfMessage())
                return
            elif isinstance(event, h11.ConnectionClosed):
                raise _BrokenOff

    async def _next(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive_some(_PART_BYTES))
        except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
            raise _BrokenOff from error
        return event


async def _say_broken_off(client: _Client, head: Head, *, streams_events: bool) -> None:
    """As far as it can still be said. An answer that has begun is never ended: no client may take it for whole."""
    refusal = Refusal(502, "api_error", "the session's engine broke off")
    if not client.has_begun_to_answer:
        await client.refuse(refusal, head.path)
    elif streams_events:
        # It may have broken off within an event. Anthropic's clients read events by their names.
        name = b"event: error\n" if head.path.startswith("/v1/messages") else b""
        await client.send(h11.Data(data=b"\n\n" + name + b"data: " + refusal.body(head.path) + b"\n\n"))


def _head(request: h11.Request) -> Head:
    names = Counter(name.decode("ascii") for name, _ in request.headers)
    return Head(
        request.method.decode("ascii"),
        request.target.decode("latin-1"),
        {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers},
        frozenset(name for name, count in names.items() if count > 1),
    )


def _health(state: State) -> bytes:
    match state:
        case Ready(route=route):
            return json.dumps({"state": "ready", "route": route}).encode()
        case Starting(detail=detail):
            return json.dumps({"state": "starting", "detail": detail}).encode()
        case Broken(reason=reason):
            return json.dumps({"state": "broken", "detail": reason}).encode()


def _busy(message: str) -> Refusal:
    return Refusal(429, "rate_limit_error", message, (("retry-after", str(RETRY_S)),))
