"""Connections of a session's endpoint, and the way of one request to the engine and back.

A client that goes frees its slot at once: its connection is watched while the engine answers, and the one to the engine is
closed with it, upon which the engine drops the request.
"""

from __future__ import annotations

import json
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
HEAD_S = 15.0
"""For a request's head, once its first byte is there."""
KEPT_S = 75.0
"""How long a connection stays between two requests."""
BODY_S = 60.0
"""How long a client may say nothing within a request's body, or not read its answer."""
CONNECT_S = 5.0
RETRY_S = 2
_PART_BYTES = 64 << 10
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"upgrade",
    )
)
_OURS = frozenset((b"host", b"authorization", b"x-api-key", b"origin", b"cookie"))
"""Meant for this endpoint, and no business of the engine."""


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

    async def serve(self, listener: trio.SocketListener) -> None:
        """Until it is cancelled."""
        await trio.serve_listeners(self._connected, [listener])

    async def _connected(self, stream: trio.SocketStream) -> None:
        self._connections += 1
        try:
            await self._requests(_Client(stream))
        except Exception:
            log.exception("a connection to the endpoint failed")
        finally:
            self._connections -= 1
            with trio.move_on_after(1):
                await stream.aclose()

    async def _requests(self, client: _Client) -> None:
        try:
            if self._connections > MAX_CONNECTIONS:
                await client.refuse(_busy("too many connections"), "")
                return
            while await self._one_request(client):
                pass
        except* (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, h11.ProtocolError):
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
        head = Head(
            request.method.decode("ascii"),
            request.target.decode("latin-1"),
            {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers},
        )
        refusal = refused(head, self._rules)
        state = self._state()
        if refusal is None and head.path == "/health":
            await client.say(200 if isinstance(state, Ready) else 503, _health(state))
            return await client.again()
        if refusal is None and not isinstance(state, Ready):
            refusal = _not_ready(state)
        if refusal is None and self._running >= self._most_at_once:
            refusal = _busy(f"{self._running} requests are running, as many as this session takes")
        if refusal is not None:
            await client.refuse(refusal, head.path)
            return await client.again()
        assert isinstance(state, Ready)
        self._running += 1
        try:
            with self._counted():
                await _forward(client, request, head, state)
        finally:
            self._running -= 1
        return await client.again()


class _Client:
    """A connection of somebody who asks."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)

    async def request(self) -> h11.Request | None:
        """The next one; None where none comes. Raises h11.RemoteProtocolError."""
        event = self._http.next_event()
        if event is h11.NEED_DATA:
            with trio.move_on_after(KEPT_S):
                self._http.receive_data(await self._stream.receive_some(_PART_BYTES))
            with trio.move_on_after(HEAD_S):
                event = await self._next()
        return event if isinstance(event, h11.Request) else None

    async def body(self) -> bytes | None:
        """The next part of a request's body; None at its end. Raises TooSlowError, h11.RemoteProtocolError."""
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        with trio.fail_after(BODY_S):
            event = await self._next()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return None
        raise h11.RemoteProtocolError("a request that ended in the middle")

    async def gone(self) -> None:
        """Returns when the client has closed its side. What it sends before that is kept for the next request, in bounds."""
        while True:
            data = await self._stream.receive_some(_PART_BYTES)
            if not data:
                return
            self._http.receive_data(data)
            if len(self._http.trailing_data[0]) > MAX_HEAD_BYTES:
                return

    async def send(self, event: h11.Event) -> None:
        """Raises TooSlowError where the client does not read."""
        with trio.fail_after(BODY_S):
            await self._send(event)

    async def say(self, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        """A whole answer of ours."""
        await self.send(
            h11.Response(
                status_code=status,
                headers=[
                    ("content-type", "application/json"),
                    ("content-length", str(len(body))),
                    *headers,
                ],
            )
        )
        await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())

    async def refuse(self, refusal: Refusal, path: str) -> None:
        await self.say(refusal.status, refusal.body(path), refusal.headers)

    @property
    def has_begun_to_answer(self) -> bool:
        return self._http.our_state is not h11.SEND_RESPONSE

    async def again(self) -> bool:
        """Whether the connection can take another request: also what was not read of this one is read by then."""
        unread = 0
        while self._http.their_state is h11.SEND_BODY and self._http.our_state is h11.DONE:
            part = await self.body()
            unread += len(part or b"")
            if unread > _PART_BYTES:
                return False
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some(_PART_BYTES))
        return event  # type: ignore[return-value] # NEED_DATA is out

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            await self._stream.send_all(data)


async def _forward(client: _Client, request: h11.Request, head: Head, state: Ready) -> None:
    """Passes the request on, and the answer back as it comes."""
    try:
        with trio.fail_after(CONNECT_S):
            stream = await trio.open_unix_socket(state.socket)
    except (OSError, trio.TooSlowError):
        await client.refuse(Refusal(502, "api_error", "the session's engine does not answer"), head.path)
        return
    async with stream:
        engine = _Engine(stream)
        try:
            await engine.ask(request, client)
        except _TooLarge:
            await client.refuse(too_large(), head.path)
            return
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await client.gone()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                await engine.answer(client, state.route)
            except (h11.RemoteProtocolError, trio.BrokenResourceError):
                await _broken_off(client, head, engine.streams_events)
            nursery.cancel_scope.cancel()


class _TooLarge(Exception):
    pass


class _Engine:
    """The connection to the engine's API, for one request."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self.streams_events = False

    async def ask(self, request: h11.Request, client: _Client) -> None:
        """Sends the request, its body as it comes. Raises _TooLarge, h11.RemoteProtocolError, TooSlowError."""
        headers = [
            (bytes(name), bytes(value))
            for name, value in request.headers
            if name not in _HOP_BY_HOP and name not in _OURS and name != b"expect"
        ]
        await self._send(
            h11.Request(
                method=request.method,
                target=request.target,
                headers=[(b"host", b"engine"), (b"connection", b"close"), *headers],
            )
        )
        sent = 0
        while (part := await client.body()) is not None:
            sent += len(part)
            if sent > MAX_BODY_BYTES:
                raise _TooLarge
            await self._send(h11.Data(data=part))
        await self._send(h11.EndOfMessage())

    async def answer(self, client: _Client, route: str) -> None:
        """Passes the answer on. Raises h11.RemoteProtocolError where the engine breaks off."""
        while True:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive_some(_PART_BYTES))
            if isinstance(event, h11.Response):
                headers = [
                    (bytes(name), bytes(value))
                    for name, value in event.headers
                    if name not in _HOP_BY_HOP and name not in (b"server", b"access-control-allow-origin")
                ]
                self.streams_events = any(
                    name == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in headers
                )
                said = (b"x-edgellm-route", route.encode("ascii", "replace"))
                await client.send(h11.Response(status_code=event.status_code, headers=[*headers, said]))
            elif isinstance(event, h11.Data):
                await client.send(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await client.send(h11.EndOfMessage())
                return
            elif isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("the engine closed its connection")

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            await self._stream.send_all(data)


async def _broken_off(client: _Client, head: Head, streams_events: bool) -> None:
    """Says that the engine went, as far as it can still be said."""
    refusal = Refusal(502, "api_error", "the session's engine broke off")
    if not client.has_begun_to_answer:
        await client.refuse(refusal, head.path)
    elif streams_events:
        await client.send(h11.Data(data=b"data: " + refusal.body(head.path) + b"\n\n"))
        await client.send(h11.EndOfMessage())
    # Else the connection closes in the middle of the body, which no client takes for its end.


def _health(state: State) -> bytes:
    if isinstance(state, Ready):
        return json.dumps({"state": "ready", "route": state.route}).encode()
    if isinstance(state, Starting):
        return json.dumps({"state": "starting", "detail": state.detail}).encode()
    return json.dumps({"state": "broken", "detail": state.reason}).encode()


def _not_ready(state: Starting | Broken) -> Refusal:
    if isinstance(state, Broken):
        return Refusal(501, "api_error", f"this session has no API: {state.reason}")
    return Refusal(
        503,
        "overloaded_error",
        f"the session is still starting: {state.detail}",
        (("retry-after", str(RETRY_S)),),
    )


def _busy(message: str) -> Refusal:
    return Refusal(429, "rate_limit_error", message, (("retry-after", str(RETRY_S)),))
