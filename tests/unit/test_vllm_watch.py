"""Who is lost and who is slow, on a clock that the test moves; and answers over real connections."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable

import pytest

pytest.importorskip("edgellm_vllm", reason="the distribution in backends/vllm is not installed")

from edgellm_vllm.pulse import Pulse, Watch
from edgellm_vllm.watch import SLOW_AGAIN_S, Silence, SlowStages, Steps


def test_steps_are_stuck_from_the_last_one_that_ended() -> None:
    steps = Steps()
    assert steps.stuck_s(100) == 0
    steps.begun(100)
    steps.begun(101)
    assert steps.stuck_s(103) == 3
    steps.done(103)
    assert steps.stuck_s(104) == 1
    steps.done(105)
    assert steps.stuck_s(200) == 0
    steps.begun(300)
    assert steps.stuck_s(301) == 1


def told_at(
    answer: Callable[[Silence, int, float], None], *, until_s: float = 60
) -> tuple[float, int | None]:
    """When (from the step's begin, in quarters of a second) what is told of two ranks that answer as `answer` has it."""
    silence = Silence(2, stall_s=5)
    for tick in range(int(until_s * 4)):
        now = 1000 + tick / 4
        for rank in silence.to_ask(tick / 4, now):
            answer(silence, rank, now)
        if (verdict := silence.verdict(tick / 4, now)) is not None:
            return tick / 4, verdict.rank
    return until_s, None


def test_one_that_does_not_answer_is_lost_and_one_that_computes_for_long_is_not() -> None:
    def frozen(silence: Silence, rank: int, now: float) -> None:
        if rank == 0:
            silence.answered(rank, False, now)

    def works(silence: Silence, rank: int, now: float) -> None:
        silence.answered(rank, rank == 1, now)

    assert told_at(frozen) == (3.75, 1)
    assert told_at(works, until_s=600) == (600, None)


def test_where_nobody_computes_and_no_step_ends_something_between_them_is_lost() -> None:
    assert told_at(lambda silence, rank, now: silence.answered(rank, False, now)) == (6.25, None)


def test_a_machine_that_slept_does_not_take_the_others_for_dead() -> None:
    silence = Silence(1, stall_s=5)
    assert silence.to_ask(3, 1000) == [0]
    silence.slept(1100)
    assert silence.verdict(100, 1100) is None
    verdict = silence.verdict(103, 1103)
    assert verdict is not None
    assert verdict.rank == 0


def test_a_stage_is_slow_after_seconds_of_ten_times_its_own_and_is_told_once_in_a_while() -> None:
    slow = SlowStages()
    now = 0.0

    def step(first_s: float, second_s: float, tokens: int = 1) -> list[int]:
        nonlocal now
        now += first_s + second_s
        return list(slow.note(tokens, (first_s, second_s), now))

    assert all(step(0.005, 0.010) == [] for _ in range(100))
    # A long prompt; a hiccup; twice as slow; ten times as slow, but quick all the same.
    assert step(3.0, 4.0, tokens=2000) == []
    assert step(0.005, 1.0) == []
    assert all(step(0.025, 0.020) == [] for _ in range(100))
    told = [step(0.005, 0.4) for _ in range(20)]
    assert told.index([1]) in (8, 9)
    assert sum(map(len, told)) == 1
    now += SLOW_AGAIN_S
    assert step(0.005, 0.4) == [1]
    assert step(0.005, 0.010) == []
    assert step(0.005, 0.4) == []


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> tuple[Watch, queue.SimpleQueue[tuple[int | None, str]]]:
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    told: queue.SimpleQueue[tuple[int | None, str]] = queue.SimpleQueue()
    return Watch(
        [Pulse().edgellm_pulse()], lambda rank, why: told.put((rank, why)), stall_s=0.6, tells_work=False
    ), told


def test_a_rank_that_answers_is_there(
    one_rank: tuple[Watch, queue.SimpleQueue[tuple[int | None, str]]],
) -> None:
    watch, told = one_rank
    watch.steps.begun(time.monotonic())
    time.sleep(2)
    watch.stop()
    assert told.empty()


def test_a_connection_that_ends_is_told_at_once_and_silence_after_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for says, least_s, most_s in (("nothing", 0.6, 1.6), ("goodbye", 0, 0.5)):
        told: queue.SimpleQueue[tuple[int | None, str]] = queue.SimpleQueue()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(5)
            place = ("127.0.0.1", listener.getsockname()[1], bytes(16))
            watch = Watch(
                [place], lambda rank, why, told=told: told.put((rank, why)), stall_s=0.6, tells_work=False
            )
            connection, _ = listener.accept()
            begun = time.monotonic()
            watch.steps.begun(begun)
            if says == "goodbye":
                threading.Timer(0.1, connection.close).start()
            assert told.get(timeout=5)[0] == 0
            assert least_s <= time.monotonic() - begun < most_s
            connection.close()


def test_a_stranger_gets_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    address, port, _ = Pulse().edgellm_pulse()
    with socket.create_connection((address, port), timeout=5) as stranger:
        stranger.sendall(bytes(16))
        assert stranger.recv(1) == b""
