"""vLLM's CPU platform, made to run over Ray."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vllm.platforms.cpu import CpuPlatform

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class RayCpuPlatform(CpuPlatform):
    """A rank takes one "GPU" of its Ray node, which is how members offer CPU ranks (`ray start --num-gpus`)."""

    ray_device_key = "GPU"
    _has_overrides = False

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Names our worker, and keeps the engine core a fork of the head."""
        parallel = vllm_config.parallel_config
        if parallel.worker_cls == "auto":
            parallel.worker_cls = "edgellm_vllm.worker.RayCpuWorker"
        super().check_and_update_config(vllm_config)
        # vLLM asks for "spawn" because its CPU workers use OpenMP; the engine core of a head has no worker in it, and
        # spawned it would import for ten seconds what the head has imported already.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    @classmethod
    def register_triton_kernel_overrides(cls) -> None:
        """As the base class, which looks at every attribute of every module and stumbles over llvmlite's library.

        Once: a rank that was forked from a process that has done it need not do it again.
        """
        if cls._has_overrides:
            return
        # LMCache imports it, and ranks import LMCache's connector ahead of time.
        hidden = sys.modules.pop("llvmlite.binding.ffi", None)
        try:
            super().register_triton_kernel_overrides()
            cls._has_overrides = True
        finally:
            if hidden is not None:
                sys.modules["llvmlite.binding.ffi"] = hidden

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        """The communicator that tells ranks in one cell from ranks in several."""
        return "edgellm_vllm.communicator.CellAwareCpuCommunicator"
