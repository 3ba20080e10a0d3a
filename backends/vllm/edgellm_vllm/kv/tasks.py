"""LMCache's tasks: each is finished exactly once and in time, whatever becomes of the work.

A task that LMCache never hears of again makes its request wait for ever, and eight of them all requests (LMCache 0.5.6). After
its deadline a task's buffers belong to somebody else, so the work may touch them only while the task is open.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

log = logging.getLogger(__name__)

R = TypeVar("R")


class Notifier(Protocol):
    """LMCache's event notifier."""

    def notify(self) -> None: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class TaskClosed(Exception):
    """The task's deadline has passed: its work is for nobody."""


class Task(Generic[R]):
    """One task and what is known of its result so far."""

    def __init__(self, so_far: R, deadline: float) -> None:
        self.so_far = so_far
        """What LMCache gets if the deadline comes now. Changed only under `while_open`."""
        self.deadline = deadline
        """Of `time.monotonic`."""
        self._lock = threading.Lock()
        self._open = True

    @property
    def left_s(self) -> float:
        """Seconds to the deadline; not negative."""
        return max(0.0, self.deadline - time.monotonic())

    @contextmanager
    def while_open(self):  # type: ignore[no-untyped-def] # a generator of None
        """For the few instructions that touch the task's buffers or result. Raises TaskClosed."""
        with self._lock:
            if not self._open:
                raise TaskClosed
            yield

    def close(self) -> bool:
        """True for the one caller that ends the task."""
        with self._lock:
            was, self._open = self._open, False
            return was


class Tasks(Generic[R]):
    """Tasks of one kind, in at most `threads` threads of their own; one that finds none free ends at once."""

    def __init__(self, kind: str, notifier: Notifier, threads: int) -> None:
        self._kind = kind
        self._notifier = notifier
        self._free = threading.Semaphore(threads)
        self._lock = threading.Lock()
        self._last = -1
        self._open: dict[int, Task[R]] = {}
        self._results: dict[int, R] = {}

    def fileno(self) -> int:
        """What LMCache polls."""
        return self._notifier.fileno()

    def submit(self, nothing: R, timeout_s: float, work: Callable[[Task[R]], None]) -> int:
        """Runs `work(task)`; the task's id. `nothing` is the result of a task that got nowhere. Never raises, never waits."""
        task = Task(nothing, time.monotonic() + timeout_s)
        with self._lock:
            self._last += 1
            number = self._last
            self._open[number] = task
        if not self._free.acquire(blocking=False):
            log.warning("a %s came while as many as may be were under way", self._kind)
            self._finish(number, task)
            return number

        def run() -> None:
            try:
                work(task)
            except TaskClosed:
                log.debug("a %s ended after its deadline", self._kind)
            except Exception:
                log.exception("a %s failed", self._kind)
            finally:
                self._free.release()
                self._finish(number, task)

        try:
            threading.Thread(target=run, name=f"kv-{self._kind}", daemon=True).start()
        except RuntimeError:
            log.exception("no thread for a %s", self._kind)
            self._free.release()
            self._finish(number, task)
        return number

    def expire(self) -> None:
        """Ends the tasks whose deadline has passed. To be called often."""
        now = time.monotonic()
        with self._lock:
            late = [(number, task) for number, task in self._open.items() if task.deadline <= now]
        for number, task in late:
            if self._finish(number, task):
                log.warning("a %s was not done by its deadline", self._kind)

    def pop(self, number: int) -> R | None:
        """The result of a task that is finished, once; else None."""
        with self._lock:
            return self._results.pop(number, None)

    def pop_all(self) -> dict[int, R]:
        """All results that nobody has asked for yet."""
        with self._lock:
            results, self._results = self._results, {}
            return results

    def close(self) -> None:
        """Frees the notifier; threads end by their deadlines."""
        self._notifier.close()

    @property
    def under_way(self) -> int:
        """How many tasks are open."""
        with self._lock:
            return len(self._open)

    def _finish(self, number: int, task: Task[R]) -> bool:
        if not task.close():
            return False
        with self._lock:
            self._results[number] = task.so_far
            self._open.pop(number, None)
        self._notifier.notify()
        return True
