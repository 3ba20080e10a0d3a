"""Tokens that come fast share messages, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine

import pytest

pytest.importorskip("edgellm_vllm", reason="the distribution in backends/vllm is not installed")

from edgellm_vllm.pace import paced

from edgellm.wire import backend_pb2 as pb

INTERVAL_S = 0.03


class _Loop(asyncio.SelectorEventLoop):
    """Time passes only while everybody waits."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0
        select = self._selector.select

        def wait(timeout: float | None) -> object:
            assert timeout is not None, "everybody waits for ever"
            self._now += timeout
            return select(0)

        self._selector.select = wait

    def time(self) -> float:
        return self._now


def run(main: Callable[[], Coroutine[None, None, None]]) -> None:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(main())


def token(number: int, finish_reason: str = "") -> pb.GenerateEvent:
    return pb.GenerateEvent(
        token_ids=[number],
        text=f"{number} ",
        prompt_tokens=7,
        finish_reason=finish_reason,
        logprobs=[-number],
        cached_prompt_tokens=3,
    )


async def tokens(
    count: int, every_s: float, error: Exception | None = None
) -> AsyncGenerator[pb.GenerateEvent, None]:
    for number in range(count):
        await asyncio.sleep(every_s)
        yield token(number, "length" if number == count - 1 and error is None else "")
    if error is not None:
        raise error


async def heard(source: AsyncGenerator[pb.GenerateEvent, None]) -> list[tuple[float, pb.GenerateEvent]]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    return [(loop.time() - began, event) async for event in paced(source, INTERVAL_S)]


def test_nothing_is_lost_or_held_back_longer_than_the_interval() -> None:
    async def main() -> None:
        events = await heard(tokens(100, 0.004))
        assert [number for _, event in events for number in event.token_ids] == list(range(100))
        assert [value for _, event in events for value in event.logprobs] == [
            -number for number in range(100)
        ]
        assert "".join(event.text for _, event in events) == "".join(f"{number} " for number in range(100))
        assert {(event.prompt_tokens, event.cached_prompt_tokens) for _, event in events} == {(7, 3)}
        assert [event.finish_reason for _, event in events] == [""] * (len(events) - 1) + ["length"]
        assert len(events) < 20
        for at, event in events:
            made = [0.004 * (number + 1) for number in event.token_ids]
            assert at - made[0] <= INTERVAL_S + 1e-6
        # The first, and the last with the end, at once.
        assert list(events[0][1].token_ids) == [0]
        assert events[0][0] == pytest.approx(0.004)
        assert events[-1][0] == pytest.approx(0.4)

    run(main)


def test_slow_tokens_come_one_by_one_and_at_once() -> None:
    async def main() -> None:
        events = await heard(tokens(10, 0.05))
        assert [list(event.token_ids) for _, event in events] == [[number] for number in range(10)]
        assert [at for at, _ in events] == pytest.approx([0.05 * (number + 1) for number in range(10)])

    run(main)


def test_an_error_comes_after_the_tokens_before_it() -> None:
    async def main() -> None:
        got: list[int] = []
        with pytest.raises(OSError, match="a rank died"):
            async for event in paced(tokens(5, 0.004, OSError("a rank died")), INTERVAL_S):
                got += event.token_ids
        assert got == list(range(5))

    run(main)


def test_whoever_leaves_ends_the_source() -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def endless() -> AsyncGenerator[pb.GenerateEvent, None]:
            try:
                while True:
                    await asyncio.sleep(0.001)
                    yield token(1)
            finally:
                ended.set()

        events = paced(endless(), INTERVAL_S)
        await anext(events)
        await events.aclose()
        assert ended.is_set()

    run(main)
