"""Outputs that come fast are given together, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("edgellm_vllm", reason="the distribution in backends/vllm is not installed")

from edgellm_vllm.paced_outputs import EVENTS_PER_S, INTERVAL_S, interval_s, paced_collector
from edgellm_vllm.timings import Timing

from tests.unit.test_vllm_pace import run


@dataclass
class Output:
    """As vLLM's RequestOutput."""

    tokens: list[int]
    finished: bool = False


@dataclass
class Collector:
    """As vLLM's RequestOutputCollector."""

    aggregate: bool
    request_id: str
    output: Any = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, output: Any) -> None:
        if self.output is None or isinstance(output, Exception):
            self.output = output
            self.ready.set()
        else:
            self.output.tokens += output.tokens
            self.output.finished |= output.finished

    def get_nowait(self) -> Any:
        output, self.output = self.output, None
        self.ready.clear()
        if isinstance(output, Exception):
            raise output
        return output


async def given(
    count: int, every_s: float, *, streams: bool = True, by_http: bool = True, error: Exception | None = None
) -> list[tuple[int, list[int]]]:
    """(millisecond, tokens) of each output that is taken."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    timing = Timing("r", "chat") if by_http else None
    collector = paced_collector(Collector, lambda: timing, lambda: 1)(streams, "r")
    taken = []

    async def make() -> None:
        for number in range(count):
            collector.put(Output([number], finished=number == count - 1 and error is None))
            await asyncio.sleep(every_s)
        if error is not None:
            collector.put(error)

    making = asyncio.create_task(make())
    finished = False
    try:
        while not finished:
            output = collector.get_nowait() or await collector.get()
            finished = output.finished
            taken.append((round(1000 * (loop.time() - began)), output.tokens))
    except RuntimeError:
        taken.append((round(1000 * (loop.time() - began)), []))
    await making
    return taken


def test_fast_tokens_share_an_output_and_the_first_and_the_last_do_not_wait() -> None:
    async def main() -> None:
        assert INTERVAL_S == 0.03
        assert await given(7, 0.013) == [(0, [0]), (39, [1, 2, 3]), (78, [4, 5, 6])]

    run(main)


def test_what_is_held_does_not_wait_for_a_step_that_is_late() -> None:
    async def main() -> None:
        assert await given(3, 0.028) == [(0, [0]), (45, [1]), (56, [2])]

    run(main)


def test_slow_tokens_come_for_themselves() -> None:
    async def main() -> None:
        assert await given(4, 0.06) == [(0, [0]), (60, [1]), (120, [2]), (180, [3])]

    run(main)


@pytest.mark.parametrize(("streams", "by_http"), [(False, True), (True, False)])
def test_only_what_is_streamed_by_http_is_held(streams: bool, by_http: bool) -> None:
    async def main() -> None:
        each = await given(3, 0.02, streams=streams, by_http=by_http)
        assert each == [(0, [0]), (20, [1]), (40, [2])]

    run(main)


def test_an_error_does_not_wait() -> None:
    async def main() -> None:
        assert await given(2, 0.01, error=RuntimeError()) == [(0, [0]), (20, [])]

    run(main)


def test_when_each_token_came_is_known_though_they_leave_together() -> None:
    timing = Timing("r", "chat")

    async def work() -> None:
        collector = paced_collector(Collector, lambda: timing, lambda: 1)(True, "r")
        for number in range(3):
            collector.put(Output([number], finished=number == 2))
        timing.note(SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0, 1, 2])], metrics=None))

    run(work)
    assert (len(timing.token_s), timing.output_tokens) == (3, 3)


def test_many_answers_share_what_events_there_are() -> None:
    assert interval_s(1) == interval_s(16) == INTERVAL_S
    assert interval_s(64) == pytest.approx(0.1)
    assert all(running / interval_s(running) <= EVENTS_PER_S + 1e-6 for running in range(1, 200))
