"""Blocking work under asyncio or trio."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

T = TypeVar("T")


async def in_thread(work: Callable[[], T], give_up: Callable[[], object]) -> T:
    """What `work` returns, from a thread. When the caller is cancelled, `give_up` is called, which must end `work` soon; that
    end is waited for.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def caught() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - raised below, outside of the task group
            failure.append(error)

    async def notice_cancellation() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            if not outcome and not failure:
                give_up()

    async with anyio.create_task_group() as group:
        group.start_soon(notice_cancellation)
        await anyio.to_thread.run_sync(caught)
        group.cancel_scope.cancel()
    # What `work` ended with when it was given up is no matter.
    await anyio.lowlevel.checkpoint_if_cancelled()
    if failure:
        raise failure[0]
    return outcome[0]
