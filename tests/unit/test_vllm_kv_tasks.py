"""LMCache's tasks: once, in time, and never after the deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

pytest.importorskip("edgellm_vllm", reason="the distribution in backends/vllm is not installed")

from edgellm_vllm.kv.tasks import Task, TaskClosed, Tasks


class Counter:
    """A notifier that counts."""

    def __init__(self) -> None:
        self.notified = 0

    def notify(self) -> None:
        self.notified += 1

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def made(threads: int = 2) -> tuple[Tasks[list[int]], Counter]:
    notifier = Counter()
    return Tasks("test", notifier, threads), notifier


def test_a_task_ends_once_with_what_its_work_found() -> None:
    tasks, notifier = made()

    def work(task: Task[list[int]]) -> None:
        with task.while_open():
            task.so_far.append(7)

    number = tasks.submit([], 5, work)
    wait_until(lambda: notifier.notified == 1)
    tasks.expire()
    assert tasks.pop(number) == [7]
    assert tasks.pop(number) is None
    assert (notifier.notified, tasks.under_way) == (1, 0)


def test_work_that_raises_ends_its_task_with_what_it_had() -> None:
    tasks, notifier = made()

    def work(task: Task[list[int]]) -> None:
        task.so_far.append(1)
        raise ValueError

    number = tasks.submit([], 5, work)
    wait_until(lambda: notifier.notified == 1)
    assert tasks.pop(number) == [1]


def test_at_the_deadline_a_task_ends_and_its_work_may_touch_nothing_more() -> None:
    tasks, notifier = made()
    go_on = threading.Event()
    refused: list[bool] = []

    def work(task: Task[list[int]]) -> None:
        with task.while_open():
            task.so_far.append(1)
        go_on.wait(5)
        try:
            with task.while_open():
                task.so_far.append(2)
        except TaskClosed:
            refused.append(True)
            raise

    number = tasks.submit([], 0.05, work)
    wait_until(lambda: tasks.expire() or notifier.notified == 1)
    result = tasks.pop(number)
    go_on.set()
    wait_until(lambda: bool(refused))
    assert result == [1]
    time.sleep(0.02)
    assert (notifier.notified, tasks.pop(number)) == (1, None)


def test_when_all_threads_are_stuck_the_next_task_ends_at_once() -> None:
    tasks, notifier = made(threads=1)
    release = threading.Event()
    tasks.submit([], 5, lambda task: release.wait(5) and None)
    number = tasks.submit([], 5, lambda task: None)
    assert notifier.notified == 1
    assert tasks.pop(number) == []
    release.set()
    wait_until(lambda: tasks.under_way == 0)
    # And threads that are free again are used again.
    last = tasks.submit([], 5, lambda task: task.so_far.append(3))
    wait_until(lambda: notifier.notified == 3)
    assert tasks.pop(last) == [3]
    assert list(tasks.pop_all().values()) == [[]]
