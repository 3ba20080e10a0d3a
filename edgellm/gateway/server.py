"""A session's endpoint: its connections, its limits, and who is served.

A request is read whole before it takes one of the session's places. A client that goes frees its place at once: its connection
is watched while the engine answers, and the one to the engine is closed with it, upon which the engine drops the request. One
that closes its sending side only is taken for gone, too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import h11
import structlog
import trio

from edgellm.gateway.client import Client
from edgellm.gateway.engine import CONSOLE, Headers
from edgellm.gateway.figures import CONTENT_TYPE, Figures
from edgellm.gateway.guard import (
    MAX_BODY_BYTES,
    Head,
    Refusal,
    Rules,
    is_for_console,
    of_another_user,
    refused,
    refused_of_console,
    too_large,
)
from edgellm.gateway.relay import Relay, open_relay
from edgellm.gateway.request_log import RequestLog, noted
from edgellm.gateway.state import Broken, Closing, Ready, Starting, State, Swapping
from edgellm.loopback import is_of_same_user

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 256
MAX_UPLOADS_BYTES = 256 << 20
"""Of all requests that are being read."""
MAX_CONSOLE_BYTES = 1 << 20
"""Of a request to the console: who sends it is looked at there, after it was read here."""
UPLOAD_S = 120.0
"""For a whole request body."""
RETRY_S = 2
SWAP_S = 1800.0
"""How long a request waits while one cluster makes room for another."""
_POLL_S = 0.05


class Gateway:
    """Serves requests as long as `serve` runs."""

    _relay: Relay

    def __init__(
        self,
        rules: Rules,
        state: Callable[[], State],
        counted: Callable[[], AbstractContextManager[Any]],
        *,
        most_at_once: int,
        console: Callable[[], Awaitable[str]] | None = None,
        journal: RequestLog | None = None,
    ) -> None:
        """`counted` is entered for each request that the engine gets; of these there are `most_at_once` at most.

        `console` gives the Unix socket on which the pages and the API of the console are served.
        """
        self._rules = rules
        self._state = state
        self._counted = counted
        self._most_at_once = most_at_once
        self._running = 0
        self._connections = 0
        self._uploads_bytes = 0
        self._console = console
        self._journal = journal
        self._figures = Figures()
        self._figures.watch(lambda: self._running, lambda: self._connections)

    async def serve(self, listener: trio.SocketListener) -> None:
        """Until it is cancelled."""
        async with open_relay() as self._relay:
            await trio.serve_listeners(self._connected, [listener])

    async def _connected(self, stream: trio.SocketStream) -> None:
        self._connections += 1
        client = Client(stream)
        try:
            await self._requests(client)
        except Exception:
            log.exception("a connection to the endpoint failed")
        finally:
            self._connections -= 1
            await client.linger()
            with trio.move_on_after(1):
                await stream.aclose()

    async def _requests(self, client: Client) -> None:
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

    async def _one_request(self, client: Client) -> bool:
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
        try:
            await self._answered(client, request, head)
        finally:
            self._figures.answered(head.path, client.status)
        return await client.again()

    async def _answered(self, client: Client, request: h11.Request, head: Head) -> None:
        if self._console is not None and is_for_console(head):
            await self._shown(client, request, head, self._console)
        elif (refusal := refused(head, self._rules)) is not None:
            await client.refuse(refusal, head.path)
        elif head.path == "/health":
            state = self._state()
            await client.say(200 if isinstance(state, Ready | Swapping) else 503, _health(state))
        elif head.path == "/metrics":
            await client.say(200, await self._figures.text(self._state()), kind=CONTENT_TYPE)
        else:
            await self._served(client, request, head)

    async def _shown(
        self, client: Client, request: h11.Request, head: Head, console: Callable[[], Awaitable[str]]
    ) -> None:
        """By the console. Pages that watch something hold none of the session's places."""
        refusal = refused_of_console(head, self._rules)
        if refusal is None and self._rules.api_key is None and not is_of_same_user(client.address):
            refusal = of_another_user()
        body = refusal or await self._whole(client, MAX_CONSOLE_BYTES)
        if isinstance(body, Refusal):
            await client.refuse(body, head.path)
            return
        try:
            socket = await console()
        except trio.TooSlowError:
            refusal = Refusal(
                503, "api_error", "the console does not begin", (("retry-after", str(RETRY_S)),)
            )
            await client.refuse(refusal, head.path)
            return
        await self._relay.forward(client, request, head.path, body, socket, passing=CONSOLE)

    async def _served(self, client: Client, request: h11.Request, head: Head) -> None:
        body = self._no_place(self._state()) or await self._whole(client)
        # Meanwhile others may have come, or the cluster gone.
        refusal = body if isinstance(body, Refusal) else self._no_place(self._state())
        if refusal is not None or isinstance(body, Refusal):
            assert refusal is not None
            await client.refuse(refusal, head.path)
            return
        self._running += 1
        try:
            settled = await self._settled(client)
            if isinstance(settled, Ready):
                with self._counted(), noted(self._journal, client, head) as own:
                    await self._relay.forward(
                        client, request, head.path, body, settled.socket, lambda: (*_added(settled), *own)
                    )
            elif settled is not None:
                await client.refuse(_not_now(settled), head.path)
        finally:
            self._running -= 1

    async def _settled(self, client: Client) -> State | None:
        """How the session stands once no swap holds requests up; None where the client has gone meanwhile."""
        if isinstance(self._state(), Swapping):
            async with client.while_it_stays():
                with trio.move_on_after(SWAP_S):
                    while isinstance(self._state(), Swapping):
                        await trio.sleep(_POLL_S)
        return None if client.is_gone else self._state()

    def _no_place(self, state: State) -> Refusal | None:
        if isinstance(state, Broken | Closing | Starting):
            return _not_now(state)
        if self._running >= self._most_at_once:
            return _busy(f"{self._running} requests are running, as many as this session takes")
        return None

    async def _whole(self, client: Client, most_bytes: int | None = None) -> bytes | Refusal:
        """A request's body, or why it is not taken."""
        most = most_bytes or MAX_BODY_BYTES
        try:
            return await self._body(client, most)
        except _TooLarge:
            return too_large(most)
        except _NoRoom:
            return _busy("too much is being sent to this session at once")
        except h11.RemoteProtocolError as error:
            return Refusal(400, "invalid_request_error", str(error))

    async def _body(self, client: Client, most_bytes: int) -> bytes:
        """The whole body of a request. Raises _TooLarge, _NoRoom, TooSlowError, h11.RemoteProtocolError."""
        parts = []
        size = 0
        try:
            with trio.fail_after(UPLOAD_S):
                while (part := await client.body()) is not None:
                    size += len(part)
                    self._uploads_bytes += len(part)
                    if size > most_bytes:
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
        case Swapping(detail=detail):
            return json.dumps({"state": "swapping", "detail": detail}).encode()
        case Closing(reason=reason):
            return json.dumps({"state": "closing", "detail": reason}).encode()
        case Broken(reason=reason):
            return json.dumps({"state": "broken", "detail": reason}).encode()


def _not_now(state: Starting | Swapping | Closing | Broken) -> Refusal:
    if isinstance(state, Broken):
        return Refusal(501, "api_error", f"this session has no API: {state.reason}")
    if isinstance(state, Closing):
        # Nothing to come again for.
        return Refusal(503, "overloaded_error", f"the session closes: {state.reason}")
    message = f"the session is not ready: {state.detail}"
    return Refusal(503, "overloaded_error", message, (("retry-after", str(RETRY_S)),))


def _busy(message: str) -> Refusal:
    return Refusal(429, "rate_limit_error", message, (("retry-after", str(RETRY_S)),))


def _added(state: Ready) -> Headers:
    """What an answer says of this session."""
    said = " ".join(state.route.encode("ascii", "replace").decode().split())
    return [(b"x-edgellm-route", said.encode())] if said else []
