"""vLLM's AsyncLLM behind our words: import, load over planned stages, generate.

Nothing of vLLM is imported with this module: the head answers while the import runs in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.wire import backend_pb2 as pb
from edgellm_vllm.api import Api, start_api
from edgellm_vllm.figures import Figures, stat_logger
from edgellm_vllm.imports import without_garbage_collection
from edgellm_vllm.kv.settings import CHUNK_TOKENS, may_share
from edgellm_vllm.kv.sharing import silent_members, transfer_options
from edgellm_vllm.paced_outputs import pace_outputs
from edgellm_vllm.placement import RankPlacement, difference, planned_placement
from edgellm_vllm.progress import Kind, ProgressListener
from edgellm_vllm.prompts import InvalidRequest, answer_tokens, check_sampling, prompt_token_ids
from edgellm_vllm.timings import Timings

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

PhaseSink = Callable[[str, str], None]

_DEFAULT_MAX_NUM_SEQS = 8
# `edgellm.planning.fit` counts activation memory for steps of this size.
_STEP_TOKENS = 2048
# vLLM refuses to start unless this share of each GPU is free, even where the KV cache has an exact size; the plan has
# seen to the memory, and another lease may hold the rest.
_LEAST_GPU_SHARE = 0.02
_PLACEMENT_TIMEOUT_S = 30.0


class RankLost(Exception):
    """A rank's process died; the engine cannot go on."""


class LoadError(Exception):
    """Bring-up failed; the text is the first cause, from whichever process it happened in."""


def import_vllm() -> None:
    """Imports all that the head and, forked from it, the engine core need; about six seconds of one core."""
    with without_garbage_collection():
        import vllm.v1.engine.async_llm
        import vllm.v1.engine.core  # noqa: F401

        import edgellm_vllm.executor
        import edgellm_vllm.models

        if may_share(os.environ):
            import edgellm_vllm.kv.connector  # noqa: F401


class Engine:
    """One loaded model."""

    def __init__(self, llm: AsyncLLM, timings: Timings, figures: Figures) -> None:
        self._llm = llm
        self._timings, self._figures = timings, figures
        timings.watch(llm)
        self.lost = False
        """Whether a rank's process has died: the engine will never answer again."""
        self.max_model_len: int = llm.model_config.max_model_len
        self.shares_kv: bool = llm.vllm_config.kv_transfer_config is not None
        cache = llm.vllm_config.cache_config
        self.kv_cache_tokens: int = (cache.num_gpu_blocks or 0) * cache.block_size

    async def placement(self) -> tuple[RankPlacement, ...]:
        """What every rank says about itself, by rank."""
        reports = await self._llm.collective_rpc("edgellm_placement", timeout=_PLACEMENT_TIMEOUT_S)
        return tuple(sorted(RankPlacement(*report) for report in reports))

    def lose(self) -> None:
        """Ends all running requests with RankLost. vLLM itself only logs that a rank died, and lets them hang."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self.lost = True
        self._llm.output_processor.propagate_error(EngineDeadError())

    async def generate(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateEvent, None]:
        """Tokens as they are made. Closing the iterator aborts.

        Raises InvalidRequest before the first event, and RankLost.
        """
        from vllm import SamplingParams, TokensPrompt
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        if self.lost:
            raise RankLost
        ids = prompt_token_ids(request, self._llm.get_tokenizer())
        sampling = request.sampling
        check_sampling(sampling)
        params = SamplingParams(
            max_tokens=answer_tokens(len(ids), sampling.max_tokens, self.max_model_len),
            temperature=sampling.temperature,
            top_p=sampling.top_p or 1.0,
            seed=sampling.seed if sampling.HasField("seed") else None,
            stop=list(sampling.stop) or None,
            ignore_eos=sampling.ignore_eos,
            logprobs=0 if sampling.logprobs else None,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty or 1.0,
            stop_token_ids=list(sampling.stop_token_ids) or None,
            output_kind=RequestOutputKind.DELTA,
        )
        outputs = self._llm.generate(TokensPrompt(prompt_token_ids=ids), params, request.request_id)
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    answer = output.outputs[0]
                    yield pb.GenerateEvent(
                        token_ids=answer.token_ids,
                        text=answer.text,
                        prompt_tokens=len(ids),
                        finish_reason=answer.finish_reason or "",
                        cached_prompt_tokens=output.num_cached_tokens or 0,
                        logprobs=[
                            chosen[token].logprob
                            for token, chosen in zip(answer.token_ids, answer.logprobs or (), strict=False)
                        ],
                    )
        except EngineDeadError as error:
            raise RankLost from error
        except VLLMClientError as error:
            raise InvalidRequest(str(error)) from error

    async def abort(self, request_id: str) -> None:
        """Ends a request; its iterator ends with the finish reason "abort". Unknown ids do nothing."""
        await self._llm.abort(request_id)

    async def start_api(self, request: pb.LoadRequest, socket: Path) -> Api:
        """Serves this engine as `edgellm_vllm.api.start_api` does."""
        return await start_api(self._llm, request, socket, self._timings, self._figures)

    async def close(self) -> None:
        """Ends the engine core and frees the ranks' devices."""
        await asyncio.to_thread(self._llm.shutdown)


async def load(
    request: pb.LoadRequest, progress: ProgressListener, phase: PhaseSink
) -> tuple[Engine, tuple[RankPlacement, ...]]:
    """Brings the engine up over exactly the request's stages and checks where each rank really runs.

    Raises LoadError. `phase(name, detail)` is called at each step.
    """
    planned = planned_placement(request.stages, request.tensor_parallel)
    causes: list[str] = []
    engine: Engine | None = None
    figures = Figures(request.served_model_name or request.model_path)
    timings = Timings(figures, [stage.address for stage in request.stages])

    def heard(kind: Kind, name: str, detail: str) -> None:
        if kind == "phase":
            phase(name, detail)
        elif kind == "failed":
            causes.append(f"{name}: {detail}")
        elif kind == "spent":
            timings.spent(detail)
        elif engine is not None:
            engine.lose()

    progress.heard = heard
    sharing = await _sharing_members(request, phase) if request.share_kv else []
    try:
        llm = await asyncio.to_thread(_build, request, [rank.address for rank in planned], sharing, figures)
    except Exception as error:
        await asyncio.sleep(0)  # the engine core's own account may still lie in the socket
        raise LoadError(causes[0] if causes else f"{type(error).__name__}: {error}") from error
    pace_outputs(llm.output_processor.get_num_unfinished_requests)
    engine = Engine(llm, timings, figures)
    phase("placement", "ask each rank what it holds")
    real = await engine.placement()
    if wrong := difference(planned, real):
        await engine.close()
        raise LoadError(f"the ranks do not run as planned: {wrong}")
    return engine, real


async def _sharing_members(request: pb.LoadRequest, phase: PhaseSink) -> list[str]:
    """The stages' members, when all of them can share their KV cache; else nobody shares, and a phase says why."""
    if not may_share(os.environ):
        phase("kv sharing", "off: this cluster's members have no network of their own")
        return []
    members = [stage.address for stage in request.stages]
    if len(set(members)) != len(members):
        phase("kv sharing", "off: a member runs several stages, and its LMCache server would mix them up")
        return []
    if silent := await asyncio.to_thread(silent_members, members):
        phase("kv sharing", f"off: no LMCache server answers on {', '.join(silent)}")
        return []
    phase("kv sharing", f"LMCache answers on {', '.join(members)}")
    return members


def _build(request: pb.LoadRequest, addresses: list[str], sharing: list[str], figures: Figures) -> AsyncLLM:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    from edgellm_vllm.executor import PlacedRayExecutor, placement_config
    from edgellm_vllm.models import import_model_class

    import_model_class(request.model_path)
    os.environ["VLLM_PP_LAYER_PARTITION"] = ",".join(
        str(stage.end_layer - stage.first_layer) for stage in request.stages
    )
    options: dict[str, Any] = {}
    if request.kv_cache_bytes:
        options["kv_cache_memory_bytes"] = request.kv_cache_bytes
        if not current_platform.is_cpu():
            options["gpu_memory_utilization"] = _LEAST_GPU_SHARE
    if request.gpu_memory_utilization:
        options["gpu_memory_utilization"] = request.gpu_memory_utilization
    if sharing:
        from vllm.config import KVTransferConfig

        options["kv_transfer_config"] = KVTransferConfig(**transfer_options(sharing))
    if request.max_model_len:
        options["max_model_len"] = request.max_model_len
    if current_platform.is_cpu():
        options["enforce_eager"] = True
        if sharing:
            # A chunk is whole blocks; on CPU vLLM's own default is as long as two chunks.
            options["block_size"] = CHUNK_TOKENS
    else:
        # Compiling takes a minute that a single answer never earns back; graphs of decode steps take seconds.
        options["compilation_config"] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    arguments = AsyncEngineArgs(
        model=request.model_path,
        served_model_name=request.served_model_name or None,
        tensor_parallel_size=request.tensor_parallel,
        pipeline_parallel_size=len(request.stages),
        distributed_executor_backend=PlacedRayExecutor,
        additional_config=placement_config(addresses),
        worker_extension_cls="edgellm_vllm.worker_extension.WorkerExtension",
        max_num_seqs=request.max_num_seqs or _DEFAULT_MAX_NUM_SEQS,
        max_num_batched_tokens=_STEP_TOKENS,
        generation_config="vllm",
        disable_log_stats=True,
        **options,
    )
    return AsyncLLM.from_engine_args(arguments, stat_loggers=[stat_logger(figures)])
