"""Moves streamed answers from the engine's connections to the clients', all of them in one thread of its own.

With 64 answers running there are thousands of events in a second, each on a connection of its own: here one costs a `read`, a
look for its end and a `write`. Two trio tasks and two HTTP parsers cost several times that. Whatever takes time or a decision
(a client that does not read, an end, a failure) goes back to trio.
"""

from __future__ import annotations

import os
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum, auto

import trio

from edgellm.epoll_thread import EpollThread, running
from edgellm.gateway.chunks import Chunks

_PART_BYTES = 64 << 10
_IN, _GONE = select.EPOLLIN, select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Outcome(Enum):
    """Why an answer is no longer moved."""

    ENDED = auto()
    """All of it has been passed on but the end itself."""
    FULL = auto()
    """The client has not read what came before: `Moved.unsent` is next."""
    CLIENT_GONE = auto()
    """It has closed its sending side, or all of the connection."""
    BROKEN_OFF = auto()
    """The engine has, or has said what is no answer."""
    STOPPED = auto()
    """Whoever waited for it was cancelled."""


class AnswerPump(EpollThread):
    """Made by `open_answer_pump`."""

    async def move(self, engine_fd: int, client_fd: int, chunks: Chunks) -> tuple[Outcome, bytes]:
        """Passes on what the engine says until there is an outcome; then also what of it could not be written yet.

        Both are non-blocking sockets that nothing else uses meanwhile. They stay open.
        """
        done = trio.Event()
        answer = _Answer(self, engine_fd, client_fd, chunks, lambda: self.tell(done.set))
        self.order(answer.begin)
        try:
            await done.wait()
        except trio.Cancelled:
            self.order(answer.stop)
            with trio.CancelScope(shield=True):
                await done.wait()
            raise
        assert answer.outcome is not None
        return answer.outcome, answer.unsent


@asynccontextmanager
async def open_answer_pump() -> AsyncIterator[AnswerPump]:
    """A running thread for the answers of one endpoint. All of them must have ended before the context does."""
    async with running(AnswerPump()) as pump:
        yield pump


class _Answer:
    def __init__(
        self,
        pump: AnswerPump,
        engine_fd: int,
        client_fd: int,
        chunks: Chunks,
        on_outcome: Callable[[], None],
    ) -> None:
        self._pump, self._chunks, self._on_outcome = pump, chunks, on_outcome
        self._engine_fd, self._client_fd = engine_fd, client_fd
        self.outcome: Outcome | None = None
        self.unsent = b""

    def begin(self) -> None:
        self._pump.change(self._engine_fd, 0, _IN, self._on_engine)
        # Not for what it says: another request may wait there for its turn.
        self._pump.change(self._client_fd, 0, _GONE, self._on_client)

    def stop(self) -> None:
        if self.outcome is None:
            self._end(Outcome.STOPPED)

    def _on_engine(self, events: int) -> None:
        try:
            data = os.read(self._engine_fd, _PART_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        chunks = self._chunks
        if (ready := chunks.take(data)) and not self._write(ready):
            return
        if chunks.ended:
            self._end(Outcome.ENDED)
        elif chunks.broken or not data:
            self._end(Outcome.BROKEN_OFF)

    def _write(self, data: bytes) -> bool:
        """Whether all of it is written; else this answer has an outcome."""
        try:
            count = os.write(self._client_fd, data)
        except BlockingIOError:
            count = 0
        except OSError:
            self._end(Outcome.CLIENT_GONE)
            return False
        if count < len(data):
            self.unsent = data[count:]
            self._end(Outcome.FULL)
            return False
        return True

    def _on_client(self, events: int) -> None:
        # Asked again: the event may have been that of an earlier connection with the same number.
        asked = select.poll()
        asked.register(self._client_fd, _GONE)
        if asked.poll(0):
            self._end(Outcome.CLIENT_GONE)

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._pump.change(self._engine_fd, _IN, 0, self._on_engine)
        self._pump.change(self._client_fd, _GONE, 0, self._on_client)
        self._on_outcome()
