"""Around vLLM's HTTP app: every answer says its request's id and where its time went, and both can be asked for."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any

from edgellm_vllm.figures import Figures
from edgellm_vllm.timings import CURRENT, Timings

if TYPE_CHECKING:
    from fastapi import FastAPI

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
}
_ID = re.compile(rb"[!-~]{1,128}")


class TimedApp:
    """An ASGI app. The head of an answer waits for the first of its body, by when it is known how long the prompt took."""

    def __init__(self, app: Any, timings: Timings) -> None:
        self._app, self._timings = app, timings

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        operation = OPERATIONS.get(scope.get("path", "")) if scope["type"] == "http" else None
        if operation is None:
            await self._app(scope, receive, send)
            return
        said = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        # vLLM names its own requests after this one, and its ids must be its own.
        request_id = said if _ID.fullmatch(said) else uuid.uuid4().hex.encode()
        headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
        scope = {**scope, "headers": [*headers, (b"x-request-id", request_id)]}
        timing = self._timings.begin(request_id.decode(), operation)
        head: dict[str, Any] | None = None
        streams = False

        async def answer(message: dict[str, Any]) -> None:
            nonlocal head, streams
            if message["type"] == "http.response.start":
                head = message
                return
            if head is not None:
                own = [(b"x-request-id", request_id)]
                if known := timing.server_timing():
                    own.append((b"server-timing", known.encode()))
                given = head.get("headers", ())
                streams = any(
                    name == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in given
                )
                await send({**head, "headers": [*given, *own]})
                head = None
            if streams and not message.get("more_body", False) and timing.ended:
                # Too late for a header. Readers of events skip lines that begin with a colon.
                comment = f": server-timing {timing.server_timing()}\n\n".encode()
                message = {**message, "body": message.get("body", b"") + comment}
            await send(message)

        token = CURRENT.set(timing)
        try:
            await self._app(scope, receive, answer)
        finally:
            CURRENT.reset(token)


def add_routes(app: FastAPI, timings: Timings, figures: Figures) -> None:
    """What the node asks for; users get it from there, if at all."""
    from fastapi import HTTPException, Response

    async def timing(request_id: str) -> dict[str, Any]:
        report = timings.report(request_id)
        if report is None:
            raise HTTPException(404, "no request of the last ones has this id")
        return report

    async def metrics() -> Response:
        return Response(figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_api_route("/edgellm/timings/{request_id:path}", timing)
    app.add_api_route("/edgellm/metrics", metrics)
