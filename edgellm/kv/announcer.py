"""Tells the tracker what it should know, in the background and in batches. What is lost on the way is only a later miss."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import structlog
import trio

from edgellm.errors import EdgeError

log = structlog.get_logger(__name__)

GATHER_S = 0.1
"""How long the first item of a batch waits for others."""
BATCH = 128
MAX_WAITING = 4096
RETRIES_S = (0.5, 2.0)
"""Pauses before the second and the third try of a batch."""

T = TypeVar("T")


class Announcer(Generic[T]):
    """A bounded queue; `run` sends what is in it.

    `tell` sends a batch and raises EdgeError when it was not taken; `lost` is told how many items were given up.
    """

    def __init__(self, tell: Callable[[Sequence[T]], Awaitable[None]], lost: Callable[[int], None]) -> None:
        self._tell = tell
        self._lost = lost
        self._waiting: deque[T] = deque()
        self._more = trio.Event()
        self._settled = trio.Event()
        self._settled.set()
        self._urgent = trio.Event()

    def say(self, item: T) -> None:
        """Puts `item` into the queue; the oldest goes where there is no room."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._lost(1)
        self._waiting.append(item)
        self._settled = trio.Event() if self._settled.is_set() else self._settled
        self._more.set()

    async def settle(self) -> None:
        """Returns once all that was said is told or given up; sends it without gathering more."""
        self._urgent.set()
        await self._settled.wait()

    async def run(self) -> None:
        """Sends until it is cancelled."""
        while True:
            await self._more.wait()
            with trio.move_on_after(GATHER_S):
                await self._urgent.wait()
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            if batch:
                await self._send(batch)
            if not self._waiting:
                self._more, self._urgent = trio.Event(), trio.Event()
                self._settled.set()

    async def _send(self, batch: Sequence[T]) -> None:
        for pause_s in (*RETRIES_S, None):
            try:
                await self._tell(batch)
                return
            except EdgeError as error:
                if pause_s is None:
                    log.info(
                        "a tracker of KV records heard nothing of some pieces",
                        items=len(batch),
                        error=str(error),
                    )
                    self._lost(len(batch))
                    return
            await trio.sleep(pause_s)
