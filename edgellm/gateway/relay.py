"""The way of one request to the engine and of its answer back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import h11
import trio

from edgellm.gateway.chunks import Chunks
from edgellm.gateway.client import Client
from edgellm.gateway.engine import ENGINE, BrokenOff, EngineConnection, Headers, Passing
from edgellm.gateway.guard import Refusal
from edgellm.gateway.pump import AnswerPump, Outcome, open_answer_pump

CONNECT_S = 5.0


class Relay:
    """Made by `open_relay`."""

    def __init__(self, pump: AnswerPump) -> None:
        self._pump = pump

    async def forward(
        self,
        client: Client,
        request: h11.Request,
        path: str,
        body: bytes,
        socket: str,
        added: Callable[[], Headers] = tuple,
        passing: Passing = ENGINE,
    ) -> None:
        """Passes the request on to the engine at `socket`, or whoever serves HTTP there, and the answer back as it comes.

        `added` gives headers of ours for it, once the engine has begun to answer.
        """
        try:
            with trio.fail_after(CONNECT_S):
                stream = await trio.open_unix_socket(socket)
        except (OSError, trio.TooSlowError):
            await client.refuse(Refusal(502, "api_error", "the session's engine does not answer"), path)
            return
        async with stream:
            engine = EngineConnection(stream, passing)
            async with client.while_it_stays():
                try:
                    await engine.ask(request, body)
                    await engine.answer(client, added)
                except BrokenOff:
                    await _say_broken_off(client, path, engine)
                    return
            if engine.chunks is not None and not client.is_gone:
                await self._move(client, path, engine, engine.chunks)

    async def _move(self, client: Client, path: str, engine: EngineConnection, chunks: Chunks) -> None:
        """Passes on what follows an answer's head."""
        while not chunks.ended:
            outcome, unsent = await self._pump.move(engine.fileno(), client.fileno(), chunks)
            if outcome is Outcome.CLIENT_GONE:
                client.is_gone = True
            elif outcome is Outcome.FULL:
                async with client.while_it_stays():
                    await client.send_raw(unsent)
            if client.is_gone:
                return
            if outcome is Outcome.BROKEN_OFF or chunks.broken:
                await _say_broken_off(client, path, engine)
                return
        await client.send(h11.EndOfMessage())


@asynccontextmanager
async def open_relay() -> AsyncIterator[Relay]:
    """For one endpoint. All that it forwards must have ended before the context does."""
    async with open_answer_pump() as pump:
        yield Relay(pump)


async def _say_broken_off(client: Client, path: str, engine: EngineConnection) -> None:
    """As far as it can still be said. An answer that has begun is never ended: no client may take it for whole."""
    refusal = Refusal(502, "api_error", "the session's engine broke off")
    if not client.has_begun_to_answer:
        await client.refuse(refusal, path)
    elif engine.streams_events and not (engine.chunks and engine.chunks.within_one):
        # It may have broken off within an event. Anthropic's clients read events by their names.
        name = b"event: error\n" if path.startswith("/v1/messages") else b""
        await client.send(h11.Data(data=b"\n\n" + name + b"data: " + refusal.body(path) + b"\n\n"))
