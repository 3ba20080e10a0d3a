"""Blocking work of the client under an event loop: whoever is cancelled goes on when the work has ended, and not before."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from edgellm import AsyncLLM
from edgellm.client import async_llm
from edgellm.client.waiting import in_thread, to_the_end

BACKENDS = ("asyncio", "trio")
WAYS = ("cancel", "cancel again", "wait_for", "timeout", "scope")


class Work:
    """Ends a while after it was given up."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        self.has_ended = False

    def do(self) -> None:
        assert self.given_up.wait(10)
        time.sleep(0.2)
        self.has_ended = True


async def cancelled(way: str, wanted: Callable[[], Awaitable[None]]) -> None:
    """Returns when `wanted`, which was cancelled after a moment, has ended by that."""

    async def task() -> None:
        await wanted()

    if way == "scope":
        with anyio.move_on_after(0.1) as scope:
            await task()
        assert scope.cancelled_caught
    elif way == "wait_for":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task(), 0.1)
    elif way == "timeout":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await task()
    else:
        running = asyncio.create_task(task())
        for _ in range(2 if way == "cancel again" else 1):
            await asyncio.sleep(0.1)
            running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


@pytest.mark.parametrize("way", WAYS)
def test_work_that_is_given_up_is_waited_for(way: str) -> None:
    async def main() -> None:
        work = Work()
        await cancelled(way, lambda: in_thread(work.do, work.given_up.set))
        assert work.has_ended

    asyncio.run(main())


@pytest.mark.parametrize("way", WAYS)
def test_an_end_is_waited_for(way: str) -> None:
    async def main() -> None:
        closed = threading.Event()

        def close() -> None:
            time.sleep(0.4)
            closed.set()

        async def ending() -> None:
            await to_the_end(close)
            # Where cancelling is held back it comes now.
            await anyio.lowlevel.checkpoint()

        await cancelled(way, ending)
        assert closed.is_set()

    asyncio.run(main())


@pytest.mark.parametrize("backend", BACKENDS)
def test_work_under_either_loop(backend: str) -> None:
    async def main() -> None:
        assert await in_thread(lambda: 5, lambda: None) == 5
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0, lambda: None)
        work = Work()
        await cancelled("scope", lambda: in_thread(work.do, work.given_up.set))
        assert work.has_ended

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("way", WAYS)
def test_a_session_that_was_opened_too_late_is_closed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Opened:
        def close(self) -> None:
            time.sleep(0.2)
            events.append("closed")

    def open_session(*wanted: Any, whose: str) -> Opened:
        give_up: threading.Event = wanted[-1]
        assert give_up.wait(10)
        time.sleep(0.2)
        events.append("opened")
        return Opened()

    monkeypatch.setattr(async_llm, "open_session", open_session)

    async def main() -> None:
        async def use() -> None:
            async with AsyncLLM("tiny"):
                events.append("used")

        await cancelled(way, use)
        assert events == ["opened", "closed"]

    asyncio.run(main())
