"""A thread that waits for many sockets with one epoll: for what comes so often that a trio task's wake-ups would cost more than
the work itself.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

Handler = Callable[[int], None]
"""Called in the thread with the events that came. It must not block, nor raise."""


class EpollThread:
    """Run by `running`. File descriptors that it watches belong to the thread, which takes orders."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._orders: deque[Callable[[], None]] = deque()
        self._ordered = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopped = False
        self.change(self._ordered, 0, select.EPOLLIN, self._obey)

    def order(self, order: Callable[[], None]) -> None:
        """Has it called in the thread; from any thread."""
        self._orders.append(order)
        os.eventfd_write(self._ordered, 1)

    def tell(self, word: Callable[[], None]) -> None:
        """Has it called in trio's thread; from this one."""
        self._token.run_sync_soon(word)

    def change(self, fd: int, before: int, after: int, handler: Handler) -> None:
        """Watch `fd` for the events `after`; 0 is for not at all. In the thread only."""
        if not before:
            self._epoll.register(fd, after)
            self._handlers[fd] = handler
        elif after:
            self._epoll.modify(fd, after)
        else:
            self._epoll.unregister(fd)
            del self._handlers[fd]

    async def _serve(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._handle_events)

    def _handle_events(self) -> None:
        """The thread: each event is handled by one read or write, so that every connection gets its turn."""
        poll, handler_of = self._epoll.poll, self._handlers.get
        while not self._stopped:
            for fd, events in poll():
                # None: an earlier event of this round has ended that connection.
                if (handle := handler_of(fd)) is not None:
                    handle(events)

    def _obey(self, events: int) -> None:
        os.eventfd_read(self._ordered)
        while self._orders:
            self._orders.popleft()()

    def _stop(self) -> None:
        self._stopped = True

    def _close(self) -> None:
        self._epoll.close()
        os.close(self._ordered)


Thread = TypeVar("Thread", bound=EpollThread)


@asynccontextmanager
async def running(thread: Thread) -> AsyncIterator[Thread]:
    """Runs it until the context ends. All that it has in hand must have ended by then."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread._serve)
            try:
                yield thread
            finally:
                thread.order(thread._stop)
    finally:
        thread._close()
