"""Around the app: the guard, bodies read whole and within bounds, headers that browsers keep to.

A body is read before the app sees the request, so that a slow upload holds nothing but its own memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from urllib.parse import quote

import structlog
import trio
from starlette.datastructures import MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgellm.console.guard import (
    LOGIN_PAGE,
    STATIC,
    Head,
    Refusal,
    Rules,
    largest_body,
    may_see_login,
    of_another_user,
    refused,
    too_large,
)
from edgellm.console.problems import BrokenOff, problem_response
from edgellm.loopback import is_of_same_user

log = structlog.get_logger(__name__)

UPLOAD_S = 30.0
MAX_UPLOADS_BYTES = 96 << 20
"""Of all bodies that are in memory."""

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass
class _Held:
    size_bytes: int = 0


class Gatekeeper:
    """Middleware: what it lets through has passed `guard.refused`."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules
        self._uploads_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._request(scope, receive, _with_headers(scope, send))

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = _head(scope)
        refusal = refused(head, self._rules)
        if refusal is None and self._rules.token is None and self._rules.only_own_user:
            client = scope.get("client")
            refusal = None if client and is_of_same_user(client) else of_another_user()
        if refusal is not None:
            await _answer(head, refusal)(scope, receive, send)
            return
        held = _Held()
        try:
            body = await self._body(head, receive, held)
            if isinstance(body, Refusal):
                await _answer(head, body)(scope, receive, send)
            elif body is not None:
                await self._guarded(scope, _replaying(body, receive), send)
        finally:
            self._uploads_bytes -= held.size_bytes

    async def _body(self, head: Head, receive: Receive, held: _Held) -> bytes | Refusal | None:
        """The whole of it, counted in `held`; None where the client went."""
        parts = []
        with trio.move_on_after(UPLOAD_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                part = message.get("body", b"")
                held.size_bytes += len(part)
                self._uploads_bytes += len(part)
                if held.size_bytes > largest_body(head.path):
                    return too_large(head.path)
                if self._uploads_bytes > MAX_UPLOADS_BYTES:
                    return _NO_ROOM
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
        return _TOO_SLOW

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app; a defect of it is an answer, too, where none has begun."""
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except BrokenOff:
            raise
        except Exception as error:
            log.error("a request to the console failed", path=scope["path"], exc_info=error)
            if has_begun:
                raise BrokenOff from error
            await _DEFECT(scope, receive, send)


_DEFECT = problem_response(
    500, "internal", "the console failed at this", "EDGELLM_LOG=error edgellm console shows why"
)
_NO_ROOM = Refusal(
    429, "busy", "too much is being sent at once", "try again in a moment", (("retry-after", "2"),)
)
_TOO_SLOW = Refusal(408, "invalid_request", f"the body did not come within {UPLOAD_S:g} s")


def _head(scope: Scope) -> Head:
    names = Counter(name.decode("latin-1").lower() for name, _ in scope["headers"])
    return Head(
        scope["method"],
        scope["path"],
        {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]},
        frozenset(name for name, count in names.items() if count > 1),
    )


def _answer(head: Head, refusal: Refusal) -> Response:
    if refusal.status == 401 and may_see_login(head):
        return RedirectResponse(f"{LOGIN_PAGE}?next={quote(head.path, safe='/')}", status_code=303)
    return problem_response(
        refusal.status, refusal.kind, refusal.message, refusal.remedy, dict(refusal.headers)
    )


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and after it what still comes: that the client has gone."""
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_headers(scope: Scope, send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault(
                "cache-control", "no-cache" if scope["path"].startswith(STATIC) else "no-store"
            )
        await send(message)

    return sending
