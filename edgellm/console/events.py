"""Answers that go on: server-sent events, and an engine's answer as it comes.

Both watch the client's connection meanwhile: whoever goes frees what was held for it at once.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgellm.console import views
from edgellm.console.problems import BrokenOff, problem_of
from edgellm.console.sources import Answer, Event, Events
from edgellm.errors import EdgeError, unwrapped

KEEP_ALIVE_S = 15.0
"""A line that says nothing is sent as often, so that whoever has gone without a word is noticed."""


class EventStream(Response):
    """Events until there are no more or the client goes. What entering them raises is an ordinary answer."""

    media_type = "text/event-stream"

    def __init__(self, events: Events) -> None:
        super().__init__()
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._events as events, trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while True:
                line = b": still here\n\n"
                with trio.move_on_after(KEEP_ALIVE_S):
                    try:
                        line = encoded(await anext(events))
                    except StopAsyncIteration:
                        break
                await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()


def encoded(event: Event) -> bytes:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    # JSON has no line ends in it, so that one `data` line is enough.
    return f"event: {event.name}\ndata: {event.data.model_dump_json()}\n\n".encode()


class PassedOn(Response):
    """An engine's answer. What entering it raises is an ordinary answer."""

    def __init__(self, answer: AbstractAsyncContextManager[Answer]) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Around the nursery, as the engine may think for long before it says the first word.
        with unwrapped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
                async with self._answer as answer:
                    await _pass_on(answer, send)
                nursery.cancel_scope.cancel()


async def _pass_on(answer: Answer, send: Send) -> None:
    headers = [
        (b"content-type", answer.content_type.encode("latin-1")),
        (b"x-request-id", answer.request_id.encode("latin-1")),
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    try:
        async for part in answer.body:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    except EdgeError as error:
        if answer.content_type.startswith("text/event-stream"):
            body = views.ErrorBody(error=problem_of(error)).model_dump_json()
            data = f"\n\ndata: {body}\n\n".encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})
        raise BrokenOff from error
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
