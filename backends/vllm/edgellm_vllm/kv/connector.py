"""LMCache's connector, for clusters with one LMCache server in each pipeline stage."""

from __future__ import annotations

import copy
import logging
import os
from typing import TYPE_CHECKING

from lmcache.integration.vllm.lmcache_mp_connector import LMCacheMPConnector
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from edgellm_vllm.kv.profile import rank_profile, write_profile
from edgellm_vllm.kv.settings import settings_from

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

log = logging.getLogger(__name__)


class StageConnector(LMCacheMPConnector):
    """Each rank's server is its stage's.

    LMCache refuses several servers with pipeline parallelism, because it names pieces by a rank's number on its server. Ours
    are named by what a rank holds (`pieces`), so here all ranks count as tensor-parallel ones.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig | None = None
    ) -> None:
        flattened = copy.copy(vllm_config)
        flattened.parallel_config = copy.copy(vllm_config.parallel_config)
        flattened.parallel_config.tensor_parallel_size = vllm_config.parallel_config.world_size
        flattened.parallel_config.pipeline_parallel_size = 1
        super().__init__(flattened, role, kv_cache_config)
        self._vllm_config: VllmConfig = vllm_config

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """As the base class; also says what this rank's pieces are. Without that all of them are misses."""
        settings = settings_from(os.environ)
        if settings is not None and settings.profiles:
            try:
                profile = rank_profile(self._vllm_config, self._kv_cache_config, kv_caches)
                write_profile(settings.profiles, profile)
            except Exception:
                # Of all that can be wrong with an unknown model's cache none is worth a failed start.
                log.exception("this rank shares no KV: its cache is of a kind that is not known here")
        super().register_kv_caches(kv_caches)

    def wait_for_save(self) -> None:
        """As the base class, which ends the rank, and so the engine, where a server has died since its last heartbeat."""
        try:
            super().wait_for_save()
        except TimeoutError:
            log.warning("LMCache's server takes no KV: what was computed now is not shared")
            # As after a heartbeat without an answer: the next one that has one undoes it.
            self.worker_adapter._health_event.clear()
