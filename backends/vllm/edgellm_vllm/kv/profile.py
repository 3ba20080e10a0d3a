"""What a rank says of its KV cache. It runs in the rank, which alone knows, and is read beside it by the adapter.

Everything that fixes the bytes of a piece besides the tokens must be in here: two ranks that differ in any of it must never
read each other's pieces. LMCache's own keys have none of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.kv.namespace import Namespace
from edgellm.kv.region import Region, rank_region
from edgellm_vllm.kv.settings import CHUNK_TOKENS

if TYPE_CHECKING:
    import torch


PIECES = "squeezed"
"""The form of a piece's content (`edgellm_vllm.kv.squeeze`): pieces of another form have other names."""

EXPONENTS = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}
"""The types whose caches are shared, and the bits that are all set in what is not finite."""


@dataclass(frozen=True)
class RankProfile:
    """One rank."""

    local_rank: int
    """Its number on its server."""
    local_ranks: int
    region: Region
    bytes_per_head_token: int
    """K and V of one head, token and layer."""
    dtype: str
    """torch's name of a cached value's type."""
    chunk_tokens: int
    facts: Mapping[str, Any]
    """Those of `edgellm.kv.namespace.Namespace`, all but the weights."""

    def namespace(self, weights: str) -> Namespace:
        """Of this rank, with that digest of its weights."""
        return Namespace(weights=weights, chunk_tokens=self.chunk_tokens, **self.facts)


class UnsharableCache(Exception):
    """A cache of a kind whose pieces cannot be cut by layer and head; the text says which."""


def rank_profile(config: Any, cache_config: Any, caches: Mapping[str, torch.Tensor]) -> RankProfile:
    """Of this rank, with vLLM's VllmConfig, KVCacheConfig, and registered caches. Raises UnsharableCache."""
    from importlib.metadata import version

    import vllm
    from vllm.model_executor.models.utils import extract_layer_index
    from vllm.platforms import current_platform
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    if len(cache_config.kv_cache_groups) != 1:
        raise UnsharableCache("several groups of layers with caches of their own")
    spec = cache_config.kv_cache_groups[0].kv_cache_spec
    if type(spec) is not FullAttentionSpec:
        raise UnsharableCache(type(spec).__name__)
    if spec.sliding_window or spec.attention_chunk_size or spec.head_size != spec.head_size_v:
        raise UnsharableCache("layers with windows, or with keys and values of different sizes")
    if config.lora_config is not None:
        raise UnsharableCache("LoRA adapters, which LMCache's keys do not tell apart")
    layers = [extract_layer_index(name) for name in caches]
    if layers != list(range(layers[0], layers[0] + len(layers))):
        raise UnsharableCache(f"layers out of order: {layers}")
    parallel = config.parallel_config
    heads = config.model_config.get_total_num_kv_heads()
    region = rank_region(
        first_layer=layers[0],
        end_layer=layers[-1] + 1,
        kv_heads=heads,
        tensor_parallel=parallel.tensor_parallel_size,
        tensor_rank=parallel.rank % parallel.tensor_parallel_size,
    )
    if spec.num_kv_heads != region.heads:
        raise UnsharableCache(f"{spec.num_kv_heads} heads in a rank of {region}")
    dtype = str(spec.dtype).removeprefix("torch.")
    if dtype not in EXPONENTS:
        raise UnsharableCache(f"values of type {dtype}, which cannot be checked")
    return RankProfile(
        local_rank=parallel.rank % parallel.tensor_parallel_size,
        local_ranks=parallel.tensor_parallel_size,
        region=region,
        bytes_per_head_token=2 * spec.head_size * spec.dtype.itemsize,
        dtype=dtype,
        chunk_tokens=CHUNK_TOKENS,
        facts={
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "kv_dtype": f"{config.cache_config.cache_dtype}/{dtype}",
            "block_tokens": spec.block_size,
            "device": current_platform.device_type,
            "attention": _attention(config),
            "instructions": _instructions(config, spec),
            "layout": f"{cache_config.kv_cache_layout} {next(iter(caches.values())).ndim}d",
            "engine": f"vllm {vllm.__version__} lmcache {version('lmcache')} {PIECES}",
            "lora": "",
        },
    )


def _attention(config: Any) -> str:
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention import Attention

    layers = get_layers_from_vllm_config(config, Attention)
    return " ".join(sorted({layer.get_attn_backend().get_name() for layer in layers.values()}))


def _instructions(config: Any, spec: Any) -> str:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return str(current_platform.get_device_capability())
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    # vLLM packs keys for the instructions of this CPU.
    return str(_get_attn_isa(spec.dtype, spec.block_size, spec.head_size, config.cache_config.cache_dtype))


def write_profile(directory: str, profile: RankProfile) -> None:
    """Where `read_profiles` finds it, whole or not at all."""
    place = Path(directory) / f"{profile.local_rank}.json"
    new = place.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(asdict(profile)))
    new.replace(place)


def read_profile(directory: str, local_rank: int) -> RankProfile | None:
    """None where that rank has not said anything."""
    try:
        content = json.loads((Path(directory) / f"{local_rank}.json").read_text())
    except FileNotFoundError:
        return None
    return RankProfile(**{**content, "region": Region(**content["region"])})
