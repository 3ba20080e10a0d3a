"""Engine steps in as few messages as they need.

For each token vLLM's core tells every rank to run the model, then to sample, and hears back from the last one twice. With
several stages it also sends a step in which nothing is scheduled, while the only one that could be is under way: a third
message with its own answer, on which each rank forgets its batch only to build it again for the next token. Between machines
each of these crosses two carriers. Here a step is one message and one answer, and an empty one is none.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from edgellm_vllm.stage_clock import CLOCK, stamp
from edgellm_vllm.token_count import TokenCount, counting, wanted

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


def says_nothing(step: SchedulerOutput) -> bool:
    """Whether no rank would do or remember anything because of this step."""
    if step.total_num_scheduled_tokens:
        return False
    nothing = type(step).make_empty()
    for name, value in vars(step).items():
        if name == "kv_connector_metadata" and _moves_nothing(value):
            continue
        # Empty collections in place of None and the other way round mean the same.
        if value != getattr(nothing, name) and (value or getattr(nothing, name)):
            return False
    return True


def _moves_nothing(metadata: Any) -> bool:
    """Whether LMCache's connector has neither loads nor stores to begin; one of another kind is believed to have some."""
    return metadata is None or not (
        getattr(metadata, "requests", True) or getattr(metadata, "need_flush_before_forward", True)
    )


def go_on_after_results() -> None:
    """In an engine core that is being made: the next step follows a result at once.

    With several stages vLLM's core waits for a result in a call that schedules nothing, since the only request is under way; it
    then takes itself for idle and sleeps a millisecond before it schedules the next token.
    """
    from vllm.v1.engine.core import EngineCore

    original = EngineCore.step_with_batch_queue
    if getattr(original, "goes_on", False):
        return

    @functools.wraps(original)
    def step(core: EngineCore) -> tuple[Any, bool]:
        outputs, executed = original(core)
        return outputs, executed or bool(outputs)

    step.goes_on = True  # type: ignore[attr-defined]
    EngineCore.step_with_batch_queue = step


class Constrained:
    """Which requests have a grammar: what a rank may sample for them is known only after the model has run."""

    def __init__(self) -> None:
        self._requests: set[str] = set()

    def any_in(self, step: SchedulerOutput) -> bool:
        """Whether any is scheduled in this step, which is the next one."""
        self._requests -= step.finished_req_ids
        for request in step.scheduled_new_reqs:
            if request.sampling_params is not None and request.sampling_params.structured_outputs is not None:
                self._requests.add(request.req_id)
        return step.has_structured_output_requests or not self._requests.isdisjoint(step.num_scheduled_tokens)


class Transfers:
    """Requests whose KV the ranks load or store, until they have said that it is done."""

    def __init__(self) -> None:
        self._open: set[str] = set()

    def sent(self, step: SchedulerOutput) -> None:
        """The ranks hear of what this step begins."""
        requests = getattr(step.kv_connector_metadata, "requests", ())
        self._open.update(request.request_id for request in requests)
        # Their blocks are kept until the last store of each is done.
        self._open |= step.finished_req_ids

    def reported(self, output: Any) -> None:
        """What all ranks together say after a step; None where nothing was to say."""
        done = getattr(output, "kv_connector_output", None)
        if done is not None:
            self._open -= (done.finished_sending or set()) | (done.finished_recving or set())

    @property
    def under_way(self) -> bool:
        return bool(self._open)


class WholeSteps:
    """Mixed into vLLM's worker class."""

    _edgellm_tokens: TokenCount | None
    rank: int

    def edgellm_step(self, step: SchedulerOutput) -> Any:
        """Runs the model and samples; the step's result, as vLLM's `sample_tokens` returns it."""
        worker: Any = self
        CLOCK.begin()
        try:
            output = worker.execute_model(step)
            if output is None:
                output = worker.sample_tokens(None)
            stamp(output, CLOCK.spent_s())
            self._edgellm_count(step.total_num_scheduled_tokens)
            return output
        finally:
            CLOCK.end()

    def _edgellm_count(self, tokens: int) -> None:
        if not hasattr(self, "_edgellm_tokens"):
            self._edgellm_tokens = counting(self.rank) if wanted() else None
        if self._edgellm_tokens is not None:
            self._edgellm_tokens.add(tokens)
