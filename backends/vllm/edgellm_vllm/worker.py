"""vLLM's CPU worker, made to run a pipeline stage without compilation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed import get_pp_group
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.worker_base import CompilationTimes

from edgellm_vllm.stage_clock import CLOCK

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class RayCpuWorker(CPUWorker):
    """Allocates what vLLM's warm-up would have: with eager execution it is skipped on CPU."""

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
