"""The way of one request to the engine and of its answer back."""

from __future__ import annotations

from collections.abc import Callable

import h11
import trio

from edgellm.gateway.client import Client
from edgellm.gateway.engine import BrokenOff, EngineConnection, Headers
from edgellm.gateway.guard import Refusal

CONNECT_S = 5.0


async def forward(
    client: Client, request: h11.Request, path: str, body: bytes, socket: str, added: Callable[[], Headers]
) -> None:
    """Passes the request on to the engine at `socket`, and the answer back as it comes.

    `added` gives headers of ours for it, once the engine has begun to answer.
    """
    try:
        with trio.fail_after(CONNECT_S):
            stream = await trio.open_unix_socket(socket)
    except (OSError, trio.TooSlowError):
        await client.refuse(Refusal(502, "api_error", "the session's engine does not answer"), path)
        return
    async with stream, trio.open_nursery() as nursery:

        async def watch() -> None:
            await client.gone()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        engine = EngineConnection(stream)
        try:
            await engine.ask(request, body)
            await engine.answer(client, added)
        except BrokenOff:
            await _say_broken_off(client, path, streams_events=engine.streams_events)
        nursery.cancel_scope.cancel()


async def _say_broken_off(client: Client, path: str, *, streams_events: bool) -> None:
    """As far as it can still be said. An answer that has begun is never ended: no client may take it for whole."""
    refusal = Refusal(502, "api_error", "the session's engine broke off")
    if not client.has_begun_to_answer:
        await client.refuse(refusal, path)
    elif streams_events:
        # It may have broken off within an event. Anthropic's clients read events by their names.
        name = b"event: error\n" if path.startswith("/v1/messages") else b""
        await client.send(h11.Data(data=b"\n\n" + name + b"data: " + refusal.body(path) + b"\n\n"))
