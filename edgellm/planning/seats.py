"""Hosts as pipeline stages: which devices one would lend, and what they hold and do together."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.types.plan import Candidate, Workload

_SLOWEST = 1e6
"""Floor of a believed rate, in bytes/s and FLOP/s: an advert that says 0 or NaN is slow, not a division by zero."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A host as it would serve as one pipeline stage, with `tensor_parallel` devices of its own."""

    peer: str
    name: str
    devices: tuple[str, ...]
    memory_bytes: int
    """Of each device: the smallest counts, because ranks are equal."""
    bandwidth_bytes_s: float
    """Of all devices together, at the pace of the slowest."""
    flops: float
    """Likewise."""
    round_trip_s: float
    speed_bytes_s: float
    """Bytes of layers that it has done with in a second, of the work that the plan is for: the bandwidth, where that is
    decoding alone."""


def take_seat(
    candidate: Candidate, tensor_parallel: int, workload: Workload, element_bytes: int
) -> Seat | None:
    """The candidate with its `tensor_parallel` largest devices; None when it has fewer."""
    if len(candidate.devices) < tensor_parallel:
        return None
    largest_first = sorted(
        candidate.devices, key=lambda d: (-d.memory_bytes, -_rate(d.bandwidth_bytes_s), d.id)
    )
    devices = largest_first[:tensor_parallel]
    bandwidth = tensor_parallel * min(_rate(device.bandwidth_bytes_s) for device in devices)
    flops = tensor_parallel * min(_rate(device.flops) for device in devices)
    return Seat(
        peer=candidate.peer,
        name=candidate.name,
        devices=tuple(sorted(device.id for device in devices)),
        memory_bytes=devices[-1].memory_bytes,
        bandwidth_bytes_s=bandwidth,
        flops=flops,
        round_trip_s=max(0.0, candidate.round_trip_s),
        speed_bytes_s=_speed_bytes_s(bandwidth, flops, workload, element_bytes),
    )


def _speed_bytes_s(bandwidth: float, flops: float, workload: Workload, element_bytes: int) -> float:
    """For each token of the answer a layer's bytes are read once, and for its share of the prompt computed with."""
    if not workload.prompt_tokens:
        return bandwidth
    prompt_tokens = workload.prompt_tokens / workload.answer_tokens
    # 2 FLOP per parameter and token, as in `edgellm.planning.predict`.
    return 1 / (1 / bandwidth + prompt_tokens * 2 / element_bytes / (flops * workload.prefill_share))


def _rate(claimed: float) -> float:
    return max(_SLOWEST, claimed)
