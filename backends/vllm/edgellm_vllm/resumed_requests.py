"""Requests that come with tokens of their answers, in the engine core and in its ranks (`token_log` says in which two ways).

They count as made here, so that penalties, limits, forbidden words and grammars go on as if nothing had been. vLLM can go on
with a request whose cache it has given up for want of room; this is the same, from the beginning of a request's life. Ranks
know all of them from the start, and choose nothing until they are through. The scheduler knows as many as are to be computed:
all, or one more whenever the last is on its way through the stages.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from edgellm_vllm.token_log import REPLAY, tokens_so_far

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput

_SEEDS_BELOW = 2**31


def resume_requests(config: VllmConfig) -> None:
    """For the engine core that is made with `config`. Pinned to vLLM 0.32: see the methods that are overridden here."""
    kind = "ResumingAsyncScheduler" if config.scheduler_config.async_scheduling else "ResumingScheduler"
    config.scheduler_config.scheduler_cls = f"{__name__}.{kind}"


class _Resuming:
    """Mixed into vLLM's schedulers."""

    def add_request(self, request: Request) -> None:
        """As the base class."""
        scheduler: Any = self
        tokens = tokens_so_far(request.sampling_params)
        withheld = tokens_so_far(request.sampling_params, REPLAY)
        if scheduler.use_v2_model_runner:
            # It learns when it first hears of a request how many of its tokens are not to be chosen.
            tokens, withheld = tokens + withheld, []
        if tokens:
            request.append_output_token_ids(tokens)
        if tokens or withheld:
            # How much of the prompt was in a cache has been said, of the prompt alone.
            request.prefill_stats = None
        request.edgellm_withheld = deque(withheld)
        super().add_request(request)  # type: ignore[misc]

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        scheduler: Any = self
        for request_id, count in scheduler_output.num_scheduled_tokens.items():
            request = scheduler.requests[request_id]
            if request.edgellm_withheld and request.num_computed_tokens + count == request.num_tokens:
                request.append_output_token_ids(request.edgellm_withheld.popleft())
        super()._update_after_schedule(scheduler_output)  # type: ignore[misc]

    def _make_cached_request_data(self, *args: Any, **kwargs: Any) -> CachedRequestData:
        data: CachedRequestData = super()._make_cached_request_data(*args, **kwargs)  # type: ignore[misc]
        scheduler: Any = self
        for index, request_id in enumerate(data.req_ids):
            # Ranks would forget what they have more.
            data.num_output_tokens[index] += len(scheduler.requests[request_id].edgellm_withheld)
        return data

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        waited_for_grammar = request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        ready: bool = super()._handle_blocked_waiting_request(request)  # type: ignore[misc]
        tokens = [*request.output_token_ids, *request.edgellm_withheld]
        if ready and waited_for_grammar and tokens:
            scheduler: Any = self
            if not scheduler.structured_output_manager.accept_tokens(request, tokens):
                request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
                scheduler.grammar_compile_error_reqs.add(request.request_id)
                return False
        return ready


class ResumingScheduler(_Resuming, Scheduler):
    """vLLM's scheduler, for requests with tokens so far."""


class ResumingAsyncScheduler(_Resuming, AsyncScheduler):
    """The same of the one that runs ahead of its devices (CUDA)."""


class SeededDraws(torch.Generator):
    """A CPU generator of a request with a seed, after one draw for each token of its answer.

    vLLM's sampler for CPUs draws one number for a token (`TopKTopPSampler.forward_cpu`). It also draws for a request whose
    prompt is not at its end in a step, and then takes that back in a way that torch has for CUDA alone.
    """

    _seed: int
    _tokens: list[int]
    _known: tuple[int, torch.Tensor] | None = None
    """The state after so many tokens."""

    @classmethod
    def after(cls, seed: int, tokens: list[int]) -> SeededDraws:
        """`tokens` is the list that grows with the answer."""
        generator = cls(device="cpu")
        generator._seed, generator._tokens = seed, tokens
        generator.set_offset(0)
        return generator

    def get_offset(self) -> int:
        """Whatever: only what is given back by it is set."""
        return 0

    def set_offset(self, offset: int) -> None:
        """To where it is after the tokens that there are."""
        if self._known is not None and self._known[0] == len(self._tokens):
            self.set_state(self._known[1])
            return
        self.manual_seed(self._seed)
        # One by one, as they were drawn: many at once may be drawn in another way.
        for _ in self._tokens:
            torch.randint(0, _SEEDS_BELOW, (1,), generator=self, dtype=torch.long)
        self._known = len(self._tokens), self.get_state()


class ResumedRequestState(CachedRequestState):
    """What a rank knows of a request, with its tokens so far.

    Of vLLM's first model runner, which is the one for CPUs; the second one (CUDA) is told all tokens by the scheduler, and its
    random numbers depend on seed and position alone.
    """

    generator: torch.Generator | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.output_token_ids = tokens_so_far(self.sampling_params) or tokens_so_far(
            self.sampling_params, REPLAY
        )
        drawn_by: torch.Generator | None = self.generator
        if drawn_by is not None and drawn_by.device.type == "cpu":
            assert self.sampling_params is not None
            self.generator = SeededDraws.after(self.sampling_params.seed, self.output_token_ids)
        elif drawn_by is not None and self.output_token_ids:
            # Never ran: as vLLM's own way to take a draw back has it, each is four numbers on.
            drawn_by.set_offset(4 * len(self.output_token_ids))


def resume_in_rank() -> None:
    """For every request that this process runs from now on."""
    from vllm.v1.worker import gpu_model_runner

    gpu_model_runner.CachedRequestState = ResumedRequestState
