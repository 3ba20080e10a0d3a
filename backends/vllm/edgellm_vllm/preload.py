"""Makes a process ready to be a rank, by being imported: Ray does that in the worker that it starts before there is work."""

from __future__ import annotations

import os

from edgellm_vllm.imports import without_garbage_collection


def _import_rank_modules() -> None:
    import vllm.v1.executor.ray_executor_v2
    from vllm.platforms import current_platform
    from vllm.utils.import_utils import resolve_obj_by_qualname

    import edgellm_vllm.placement
    from edgellm_vllm.gloo import share_one_device
    from edgellm_vllm.kv.settings import may_share
    from edgellm_vllm.models import import_model_class
    from edgellm_vllm.resumed_requests import resume_in_rank

    share_one_device()
    if current_platform.is_cpu():
        import edgellm_vllm.worker

        current_platform.register_triton_kernel_overrides()
    else:
        import vllm.v1.worker.gpu_worker  # noqa: F401
    resume_in_rank()
    resolve_obj_by_qualname(current_platform.get_device_communicator_cls())
    if may_share(os.environ):
        import edgellm_vllm.kv.connector  # noqa: F401
    if model_path := os.environ.get("EDGELLM_VLLM_MODEL"):
        import_model_class(model_path)


with without_garbage_collection():
    _import_rank_modules()
