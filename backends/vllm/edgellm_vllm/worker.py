"""vLLM's CPU worker, made to run a pipeline stage without compilation."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from vllm.distributed import get_pp_group
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.worker_base import CompilationTimes

from edgellm_vllm.stage_clock import CLOCK

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


MEET_S = 30.0
"""Within which ranks that are all there find each other: they have imported everything by then."""


class RayCpuWorker(CPUWorker):
    """Allocates what vLLM's warm-up would have: with eager execution it is skipped on CPU."""

    def init_device(self) -> None:
        """As the base class; a rank that does not reach the others ends, where gloo would wait for half an hour."""
        # A call into gloo cannot be cut short.
        watchdog = threading.Timer(MEET_S, _end)
        watchdog.daemon = True
        watchdog.start()
        try:
            super().init_device()
        finally:
            watchdog.cancel()

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """As the base class; a step that does not come whole is known to be computed, too."""
        CLOCK.goes_on()
        return super().execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """As the base class."""
        CLOCK.goes_on()
        try:
            return super().sample_tokens(grammar_output)
        finally:
            CLOCK.end()

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """As the base class; afterwards a stage after the first can receive its input."""
        runner = self.model_runner
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )
        return super().compile_or_warm_up_model()


def _end() -> None:
    print(f"the other ranks were not reached within {MEET_S:g} s", file=sys.stderr, flush=True)
    os._exit(1)
