"""Streamed answers of the API in as many events as a reader can tell apart, rather than one for each token; gRPC's have
`pace`.

An event of the API takes the head about 100 microseconds of CPU, and the gateway and the client some more. With 64 answers at
once there are thousands of them in a second, on cores that the engine core needs, too. So all answers together have
`EVENTS_PER_S` at most; a token that is slower than that leaves to its answer has an event of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from edgellm_vllm.timings import CURRENT, Timing

EVENTS_PER_S = 640
INTERVAL_S = 0.03
"""At least between two events of an answer, about two frames of a screen; the most there is where few answers are running."""

LATE = 0.5
"""Of an interval: how much longer what is held waits for the next step, to go with that one's outputs."""


def interval_s(running: int) -> float:
    """Between two events of an answer, while so many are running."""
    return max(INTERVAL_S, running / EVENTS_PER_S)


def paced_collector(
    base: type[Any], current: Callable[[], Timing | None], running: Callable[[], int]
) -> type[Any]:
    """`base` is vLLM's `RequestOutputCollector`, in which a request's outputs wait to be taken, and are joined meanwhile.

    This one gives an output no sooner than `interval_s` after the one before; the first and the last one, and errors, at once.
    Only of answers that are streamed, for others have one output, and of requests that `current` knows in their context; there
    it is noted when each token came.
    """

    class PacedCollector(base):
        def __init__(self, output_kind: Any, request_id: str) -> None:
            super().__init__(output_kind, request_id)
            self._loop = asyncio.get_running_loop()
            self._timing = current() if self.aggregate else None
            if self._timing is not None:
                self._timing.is_ticked = True
            self._interval_s = INTERVAL_S
            self._next_at = 0.0
            self._timer: asyncio.TimerHandle | None = None

        def put(self, output: Any) -> None:
            """As the base class."""
            super().put(output)
            if self._timing is None or isinstance(output, Exception):
                self.ready.set()
                return
            self._timing.tick()
            if output.finished or self._loop.time() >= self._next_at:
                # With the outputs of the same step for others: one wake-up, here and downstream, is for all of them.
                self.ready.set()
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
                return
            self.ready.clear()
            if self._timer is None:
                self._timer = self._loop.call_at(self._next_at + LATE * self._interval_s, self._give)

        async def get(self) -> Any:
            """As the base class."""
            while (output := self.get_nowait()) is None:
                await self.ready.wait()
            return output

        def get_nowait(self) -> Any:
            """As the base class; None also for what is not to be given yet."""
            if not self.ready.is_set():
                return None
            self._interval_s = interval_s(running())
            self._next_at = self._loop.time() + self._interval_s
            return super().get_nowait()

        def _give(self) -> None:
            self._timer = None
            if self.output is not None:
                self.ready.set()

    return PacedCollector


def pace_outputs(running: Callable[[], int]) -> None:
    """Of all HTTP requests to this process from now on; `running` counts those of the engine."""
    from vllm.v1.engine import async_llm
    from vllm.v1.engine.output_processor import RequestOutputCollector

    async_llm.RequestOutputCollector = paced_collector(RequestOutputCollector, CURRENT.get, running)
