"""Models and hosts for planning tests, with numbers to calculate by hand."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.planning.fit import footprint
from edgellm.planning.seats import Seat
from edgellm.types.advert import Device, Engine
from edgellm.types.model import ModelShape
from edgellm.types.plan import Candidate, PlanRequest, StagePlan, Workload

MIB = 1 << 20
GIB = 1 << 30
DIGEST = "ab" * 32
CPU = Engine("vllm", "cpu", (("vllm", "0.32.0"),))
OTHER = Engine("vllm", "cpu", (("vllm", "0.33.0"),))


def model(
    *,
    layers: Sequence[int] = (100 * MIB,) * 12,
    embedding: int = 200 * MIB,
    head: int = 200 * MIB,
    heads: int = 32,
    kv_heads: int = 8,
    tied: bool = False,
) -> ModelShape:
    """KV of one token and layer is 4 KiB with 8 KV heads."""
    return ModelShape(
        "LlamaForCausalLM",
        tuple(layers),
        embedding,
        head,
        heads,
        kv_heads,
        head_dim=128,
        element_bytes=2,
        max_context=4096,
        tied_embeddings=tied,
    )


def ask(
    shape: ModelShape | None = None,
    *,
    tp: int | None = None,
    pp: int | None = None,
    peers: tuple[str, ...] = (),
    context: int = 1024,
    sequences: int = 1,
    workload: Workload | None = None,
    min_tok_s: float = 0.0,
    max_load: float = 1.0,
) -> PlanRequest:
    return PlanRequest(
        "org/model",
        DIGEST,
        shape or model(),
        context,
        sequences,
        tensor_parallel=tp,
        pipeline_parallel=pp,
        peers=peers,
        workload=workload or Workload(),
        min_tok_s=min_tok_s,
        max_load=max_load,
    )


def host(
    peer: str,
    memory: int = 8 * GIB,
    *,
    bandwidth: float = 20e9,
    devices: int = 1,
    name: str = "",
    engine: Engine = CPU,
    digest: str = DIGEST,
    fabrics: tuple[str, ...] = ("overlay",),
    round_trip: float = 0.001,
    flops: float = 1e12,
    kv_layout: str = "vec",
    load: float = 0.0,
) -> Candidate:
    lent = tuple(
        Device(str(i), engine.device_kind, "test", memory, bandwidth, flops, kv_layout)
        for i in range(devices)
    )
    return Candidate(peer, name or f"host-{peer}", digest, engine, lent, fabrics, round_trip, load)


def seat(peer: str, memory: int = 8 * GIB, bandwidth: float = 20e9) -> Seat:
    return Seat(peer, peer, ("0",), memory, bandwidth, 1e12, 0.001, bandwidth)


def layers_of(plan: StagePlan) -> dict[str, int]:
    return {stage.peer: stage.end_layer - stage.first_layer for stage in plan.stages}


def overhead(shape: ModelShape | None = None, *, context: int = 1024) -> int:
    need = footprint(shape or model(), tensor_parallel=1, context=context, sequences=1, device_kind="cpu")
    return need.overhead_bytes
