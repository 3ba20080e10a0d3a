"""How much memory a pipeline stage needs on each of its devices."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from edgellm.types.model import ModelShape

_MIB = 1 << 20

KV_BLOCK_TOKENS = {"cpu": 128, "cuda": 16}
"""Tokens in one block of vLLM's KV cache: its defaults by platform."""

ENGINE_BYTES = {"cpu": 1024 * _MIB, "cuda": 1280 * _MIB}
"""What a rank holds besides weights, KV cache and activations.

cpu: measured as unique set size (vLLM 0.32, Ray 2.60): a process that runs a model of 5 MB with 64 MiB of KV cache has
740 MiB, the Ray processes of a node (raylet, agents, one idle worker) have 220 MiB; a tenth more for what was missed.
cuda: an estimate (CUDA context and kernels about 500 MiB, NCCL buffers, the allocator's slack), not measured.
"""

KV_SERVER_BYTES = {"cpu": (512 + 230) * _MIB, "cuda": 0}
"""What sharing the KV cache takes of a member: LMCache's first level (`edgellm.engine.backend.KvSharing.cache_bytes`), and its
process, 206 MiB of anonymous memory as measured (LMCache 0.5.6). With CUDA it is the machine's memory and not the devices'.
"""

BATCHED_TOKENS = 2048
"""The most tokens that one step of chunked prefill computes."""

ACTIVATION_VECTORS = 16
"""Live activations per token in units of the hidden size: residual and hidden state (2), Q, K, V and attention output (4),
the MLP's gate and up projection and their product (about 10 for an intermediate size of 3.5 times the hidden size)."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory needs of one model under one request and one tensor-parallel degree."""

    shape: ModelShape
    tensor_parallel: int
    context: int
    sequences: int
    device_kind: str
    weights_before: tuple[int, ...]
    """At index i: the bytes of layers [0, i), all ranks together."""
    shares_kv: bool = False

    @property
    def kv_tokens(self) -> int:
        """Slots in the KV cache: every sequence rounded up to whole blocks, and the one block that vLLM keeps as null."""
        block = KV_BLOCK_TOKENS.get(self.device_kind, KV_BLOCK_TOKENS["cuda"])
        return (self.sequences * ceil_div(self.context, block) + 1) * block

    @property
    def kv_layer_bytes(self) -> int:
        """KV cache of one layer on one rank. A rank holds at least one KV head: with fewer heads than ranks they repeat."""
        heads = max(1, ceil_div(self.shape.kv_heads, self.tensor_parallel))
        return self.kv_tokens * heads * self.shape.kv_bytes_per_token_and_layer // self.shape.kv_heads

    @property
    def overhead_bytes(self) -> int:
        """Engine and activations of one rank."""
        hidden = self.shape.attention_heads * self.shape.head_dim
        tokens = min(BATCHED_TOKENS, self.context * self.sequences)
        engine = ENGINE_BYTES.get(self.device_kind, ENGINE_BYTES["cuda"])
        if self.shares_kv:
            # One for all ranks of a member.
            engine += ceil_div(KV_SERVER_BYTES.get(self.device_kind, 0), self.tensor_parallel)
        return engine + tokens * hidden * self.shape.element_bytes * ACTIVATION_VECTORS

    def layer_bytes(self, first: int, end: int) -> int:
        """Weights of layers [first, end), all ranks together."""
        return self.weights_before[end] - self.weights_before[first]

    def weights_bytes(self, first: int, end: int) -> int:
        """Weights of a stage with layers [first, end), all its ranks together.

        The first stage holds the embedding, the last one the head, and a copy of the embedding where it is tied.
        """
        weights = self.layer_bytes(first, end)
        is_last = end == self.shape.layers
        if first == 0 or (is_last and self.shape.tied_embeddings):
            weights += self.shape.embedding_bytes
        return weights + (self.shape.head_bytes if is_last else 0)

    def kv_bytes(self, layers: int) -> int:
        """KV cache of `layers` layers on one rank."""
        return layers * self.kv_layer_bytes

    def stage_bytes(self, first: int, end: int) -> int:
        """Memory of each rank of a stage with layers [first, end): weights, KV cache, overhead."""
        weights = ceil_div(self.weights_bytes(first, end), self.tensor_parallel)
        return weights + self.kv_bytes(end - first) + self.overhead_bytes


def footprint(
    shape: ModelShape,
    *,
    tensor_parallel: int,
    context: int,
    sequences: int,
    device_kind: str,
    shares_kv: bool = False,
) -> Footprint:
    """The memory needs of `shape` with room for `sequences` sequences of `context` tokens."""
    before = tuple(accumulate(shape.layer_bytes, initial=0))
    return Footprint(shape, tensor_parallel, context, sequences, device_kind, before, shares_kv)


def ceil_div(dividend: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-dividend // divisor)
