"""Blocking work under asyncio or trio."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")


async def in_thread(work: Callable[[], T], give_up: Callable[[], object]) -> T:
    """What `work` returns, from a thread. When the caller is cancelled, `give_up` is called, which must end `work` soon; that
    end is waited for.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []
    ended = threading.Event()

    def caught() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's task
            failure.append(error)
        finally:
            ended.set()

    # A thread of its own has begun here, whatever cancels the wait for it.
    threading.Thread(target=caught, name="edgellm-work").start()
    try:
        await anyio.to_thread.run_sync(ended.wait, abandon_on_cancel=True)
    except BaseException:
        # What `work` ends with when it is given up is no matter.
        if not ended.is_set():
            give_up()
        await _wait_shielded(ended)
        raise
    if failure:
        raise failure[0]
    return outcome[0]


async def to_the_end(work: Callable[[], None]) -> None:
    """Does `work` in a thread. When the caller is cancelled, it is so after it."""
    with anyio.CancelScope(shield=True):
        await in_thread(work, lambda: None)


async def _wait_shielded(ended: threading.Event) -> None:
    with anyio.CancelScope(shield=True):
        while not ended.is_set():
            # asyncio's own ways to cancel pass through the shield: Task.cancel, asyncio.timeout, Ctrl-C.
            with suppress(anyio.get_cancelled_exc_class()):
                await anyio.to_thread.run_sync(ended.wait, abandon_on_cancel=True)
