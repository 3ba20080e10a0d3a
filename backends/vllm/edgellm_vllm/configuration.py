"""vLLM's configuration for an engine as the plan has it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from edgellm.wire import backend_pb2 as pb
from edgellm_vllm.kv.settings import CHUNK_TOKENS
from edgellm_vllm.kv.sharing import transfer_options
from edgellm_vllm.watch import DEFAULT_STALL_S

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_DEFAULT_MAX_NUM_SEQS = 8
# `edgellm.planning.fit` counts activation memory for steps of this size.
_STEP_TOKENS = 2048
# vLLM refuses to start unless this share of each GPU is free, even where the KV cache has an exact size; the plan has
# seen to the memory, and another lease may hold the rest.
_LEAST_GPU_SHARE = 0.02


def engine_config(
    request: pb.LoadRequest, addresses: list[str], sharing: list[str], max_model_len: int = 0
) -> VllmConfig:
    """For ranks on `addresses`, of which `sharing` share their KV cache; 0: `max_model_len` as the request has it.

    Raises what vLLM raises for a model or a plan that it cannot run.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    from edgellm_vllm.executor import PlacedRayExecutor, placement_config
    from edgellm_vllm.resumed_requests import resume_requests

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
    if wanted := max_model_len or request.max_model_len:
        options["max_model_len"] = wanted
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
        additional_config=placement_config(addresses, request.stall_s or DEFAULT_STALL_S),
        worker_extension_cls="edgellm_vllm.worker_extension.WorkerExtension",
        max_num_seqs=request.max_num_seqs or _DEFAULT_MAX_NUM_SEQS,
        max_num_batched_tokens=_STEP_TOKENS,
        generation_config="vllm",
        disable_log_stats=True,
        **options,
    )
    config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
    resume_requests(config)
    return config
