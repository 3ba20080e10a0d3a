"""A plan in words."""

from __future__ import annotations

from edgellm.types.plan import StagePlan
from edgellm.types.quantity import format_bytes


def describe(plan: StagePlan) -> str:
    """A few lines: the shape, for each host its layers and memory, and what speed to expect."""
    stages, degree = plan.pipeline_parallel, plan.tensor_parallel
    hosts = "1 host" if stages == 1 else f"{stages} hosts"
    devices = f", {degree} devices each" if degree > 1 else ""
    lines = [
        f"{plan.request.model} on {hosts}{devices} (TP={degree}, PP={stages}), context {plan.request.context:,} tokens"
    ]
    labels = [stage.name or f"{stage.peer[:16]}" for stage in plan.stages]
    width = max(len(label) for label in labels)
    for label, stage in zip(labels, plan.stages, strict=True):
        layers = f"layers {stage.first_layer}-{stage.end_layer - 1}"
        if stage.end_layer - stage.first_layer == 1:
            layers = f"layer {stage.first_layer}"
        each = " per device" if degree > 1 else ""
        lines.append(f"  {label:<{width}}  {layers:<14} {format_bytes(stage.memory_bytes)}{each}")
    prediction = plan.prediction
    lines.append(
        f"  expected: {prediction.decode_tok_s:,.1f} tok/s, prompts at {prediction.prefill_tok_s:,.0f} tok/s; "
        f"KV cache {format_bytes(plan.kv_cache_bytes)} per device"
    )
    return "\n".join(lines)
