"""Answers in as many messages as a reader can tell apart, rather than one for each token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from edgellm.wire import backend_pb2 as pb

INTERVAL_S = 0.03
"""About two frames of a screen. Of a small model a token comes every few milliseconds, and a message costs 0.5 ms of CPU."""


async def paced(
    events: AsyncIterator[pb.GenerateEvent], interval_s: float = INTERVAL_S
) -> AsyncGenerator[pb.GenerateEvent, None]:
    """The same events, those that come within `interval_s` of the last one joined: never held back for longer.

    The first and the last are given at once. What `events` raises is raised after all that came before it.
    """
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    held: list[pb.GenerateEvent] = []
    given_at = -interval_s

    async def read() -> None:
        try:
            async for event in events:
                held.append(event)
                if len(held) == 1 and not event.finish_reason:
                    loop.call_at(given_at + interval_s, ready.set)
                elif event.finish_reason:
                    ready.set()
        finally:
            ready.set()

    reader = asyncio.create_task(read())
    try:
        while not (reader.done() and not held):
            await ready.wait()
            ready.clear()
            if held:
                event = _joined(held)
                held.clear()
                given_at = loop.time()
                yield event
        reader.result()
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


def _joined(events: list[pb.GenerateEvent]) -> pb.GenerateEvent:
    last = events[-1]
    if len(events) > 1:
        text = "".join(event.text for event in events)
        tokens = [token for event in events for token in event.token_ids]
        logprobs = [logprob for event in events for logprob in event.logprobs]
        last = pb.GenerateEvent(
            token_ids=tokens,
            text=text,
            prompt_tokens=last.prompt_tokens,
            finish_reason=last.finish_reason,
            cached_prompt_tokens=last.cached_prompt_tokens,
            logprobs=logprobs,
        )
    return last
