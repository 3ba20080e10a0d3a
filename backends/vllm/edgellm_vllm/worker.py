"""vLLM's CPU worker, made to run a pipeline stage without compilation."""

from __future__ import annotations

from vllm.distributed import get_pp_group
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.worker_base import CompilationTimes


class RayCpuWorker(CPUWorker):
    """Allocates what vLLM's warm-up would have: with eager execution it is skipped on CPU."""

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """As the base class; afterwards a stage after the first can receive its input."""
        runner = self.model_runner
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )
        return super().compile_or_warm_up_model()
