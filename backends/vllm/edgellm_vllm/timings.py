"""Where the time of each request went, as the head sees it: kept for the last ones, and said with every answer."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgellm_vllm.figures import Figures

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

KEPT = 256
"""Requests that can be asked about."""
MAX_TOKEN_TIMES = 16384
"""Of one request: what comes after these has no time of its own."""

CURRENT: ContextVar[Timing | None] = ContextVar("CURRENT", default=None)
"""The HTTP request that is being answered."""

# What vLLM puts around a request's id: the number of a choice in front, eight random digits behind.
_ENGINE_ID = re.compile(r"(?:\d+_)?(.*)-[0-9a-f]{8}")


@dataclass(slots=True)
class Timing:
    """One request of a user's; the engine may have several for it (choices, prompts).

    Instants are of `time.monotonic`, which the engine core's process shares.
    """

    request_id: str
    operation: str
    """"chat", "text_completion" or "generate_content", as OpenTelemetry has them."""
    arrived: float = field(default_factory=time.monotonic)
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    output_tokens: int = 0
    token_s: list[float] = field(default_factory=list)
    is_ticked: bool = False
    """Whether it is told of each token as it comes, though several may leave the engine together."""
    queued: float = 0.0
    scheduled: float = 0.0
    first: float = 0.0
    last: float = 0.0
    ended: bool = False
    stage_prefill_s: list[float] = field(default_factory=list)
    stage_decode_s: list[float] = field(default_factory=list)
    stages_are_known: bool = False
    stages_are_whole: bool = True

    def note(self, output: Any) -> None:
        """A piece of the answer leaves the engine (vLLM's RequestOutput)."""
        tokens = sum(len(choice.token_ids) for choice in output.outputs)
        self.output_tokens += tokens
        if tokens and not self.is_ticked:
            self.tick()
        if (stats := output.metrics) is None:
            return
        self.queued = _earliest(self.queued, stats.queued_ts)
        self.scheduled = _earliest(self.scheduled, stats.scheduled_ts)
        self.first = _earliest(self.first, stats.first_token_ts)
        self.last = max(self.last, stats.last_token_ts)

    def tick(self) -> None:
        """A token has come from the engine."""
        if len(self.token_s) < MAX_TOKEN_TIMES:
            self.token_s.append(time.monotonic() - self.arrived)

    def spent(self, prefill_s: Sequence[float], decode_s: Sequence[float], *, whole: bool) -> None:
        """What the stages computed for one of the engine's requests. Several of one user's share their steps."""
        self.stage_prefill_s = _longest(self.stage_prefill_s, prefill_s)
        self.stage_decode_s = _longest(self.stage_decode_s, decode_s)
        self.stages_are_known = True
        self.stages_are_whole = self.stages_are_whole and whole

    @property
    def queue_s(self) -> float | None:
        """Until the engine began with it."""
        return self.scheduled - self.queued if self.scheduled else None

    @property
    def prefill_s(self) -> float | None:
        """From there to the first token."""
        return self.first - self.scheduled if self.first else None

    @property
    def decode_s(self) -> float | None:
        """From the first token to the last one."""
        return self.last - self.first if self.ended and self.first else None

    def server_timing(self) -> str:
        """What is known by now, in milliseconds, as the header of that name has it (W3C Server Timing)."""
        known = {"queue": self.queue_s, "prefill": self.prefill_s, "decode": self.decode_s}
        return ", ".join(
            f"{name};dur={seconds * 1000:.1f}" for name, seconds in known.items() if seconds is not None
        )

    def report(self, addresses: Sequence[str]) -> dict[str, Any]:
        """For JSON; `addresses` are those of the stages' members, in pipeline order. What is not known is None."""
        stages, network = [], None
        if self.stages_are_known:
            prefill_s = self._of_each(self.stage_prefill_s, len(addresses))
            decode_s = self._of_each(self.stage_decode_s, len(addresses))
            for index, address in enumerate(addresses):
                stages.append(
                    {
                        "stage": index,
                        "address": address,
                        "prefill_s": prefill_s[index] if prefill_s else None,
                        "decode_s": decode_s[index] if decode_s else None,
                    }
                )
            # Of a step that told nothing of its stages, all would count as network.
            if self.stages_are_whole and prefill_s and decode_s:
                network = {
                    "prefill_s": _rest(self.prefill_s, prefill_s),
                    "decode_s": _rest(self.decode_s, decode_s),
                }
        return {
            "request_id": self.request_id,
            "operation": self.operation,
            "ended": self.ended,
            "prompt_tokens": self.prompt_tokens,
            "cached_prompt_tokens": self.cached_prompt_tokens,
            "output_tokens": self.output_tokens,
            "queue_s": self.queue_s,
            "prefill_s": self.prefill_s,
            "decode_s": self.decode_s,
            "token_s": self.token_s,
            "stages": stages,
            "network_s": network,
        }

    def _of_each(self, told_s: Sequence[float], stages: int) -> Sequence[float]:
        """What each of the stages computed; () where it is not known whose times were told."""
        if not told_s and self.stages_are_whole and self.stage_prefill_s:
            # There was no such step.
            return [0.0] * stages
        return told_s if len(told_s) == stages else ()


class Timings:
    """Of the last requests to one engine."""

    def __init__(self, figures: Figures, addresses: Sequence[str] = ()) -> None:
        self._figures = figures
        self.addresses = tuple(addresses)
        """Of the stages' members, in pipeline order."""
        self._kept: OrderedDict[str, Timing] = OrderedDict()
        self._of_engine: OrderedDict[str, Timing] = OrderedDict()

    def begin(self, request_id: str, operation: str) -> Timing:
        """A request has come. One of the same id before it is forgotten."""
        timing = Timing(request_id, operation)
        _keep(self._kept, request_id, timing)
        return timing

    def report(self, request_id: str) -> dict[str, Any] | None:
        """See `Timing.report`; None for one that is not known, or not any more."""
        timing = self._kept.get(request_id)
        return timing.report(self.addresses) if timing else None

    def interrupted(self) -> None:
        """An engine core is gone, and with it what it knew of the stages' times for requests that are under way."""
        for timing in self._kept.values():
            if not timing.ended:
                timing.stages_are_whole = False

    def spent(self, detail: str) -> None:
        """What the engine core told when some of its requests had ended (`progress`)."""
        for engine_id, prefill_s, decode_s, whole in json.loads(detail):
            found = _ENGINE_ID.fullmatch(engine_id)
            timing = self._of_engine.get(found[1] if found else engine_id)
            if timing is not None:
                timing.spent(prefill_s, decode_s, whole=whole)

    def watch(self, llm: AsyncLLM) -> None:
        """Has every request to `llm`, whoever makes it, be timed."""
        original = llm.generate

        async def generate(
            prompt: Any, sampling_params: Any, request_id: str, **options: Any
        ) -> AsyncGenerator[Any, None]:
            timing = CURRENT.get() or self.begin(request_id, "generate_content")
            _keep(self._of_engine, request_id, timing)
            async with contextlib.aclosing(
                original(prompt, sampling_params, request_id, **options)
            ) as outputs:
                prompt_tokens = tokens = 0
                async for output in outputs:
                    is_first = not prompt_tokens
                    timing.ended = output.finished
                    timing.note(output)
                    if is_first:
                        prompt_tokens = len(output.prompt_token_ids or ())
                        timing.prompt_tokens += prompt_tokens
                        timing.cached_prompt_tokens += output.num_cached_tokens or 0
                        # Of an answer that is given whole the only output comes last.
                        self._figures.first(timing, (timing.first or time.monotonic()) - timing.arrived)
                    tokens += sum(len(choice.token_ids) for choice in output.outputs)
                    yield output
            self._figures.ended(timing, prompt_tokens, tokens)

        llm.generate = generate


def _keep(kept: OrderedDict[str, Timing], key: str, timing: Timing) -> None:
    kept[key] = timing
    kept.move_to_end(key)
    if len(kept) > KEPT:
        kept.popitem(last=False)


def _earliest(known: float, other: float) -> float:
    return min(known, other) if known and other else known or other


def _longest(known: Sequence[float], others: Sequence[float]) -> list[float]:
    return [max(_nth(known, index), _nth(others, index)) for index in range(max(len(known), len(others)))]


def _nth(values: Sequence[float], index: int) -> float:
    return values[index] if index < len(values) else 0.0


def _rest(whole_s: float | None, parts_s: Sequence[float]) -> float | None:
    # Steps of others may overlap with one's own, so parts can add up to more.
    return None if whole_s is None else max(0.0, whole_s - sum(parts_s))
