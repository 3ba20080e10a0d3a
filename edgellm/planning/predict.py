"""How fast a plan would run.

Decoding one sequence reads every weight once for each token, so memory bandwidth bounds it; prefill multiplies many
tokens with each weight, so arithmetic bounds it (the roofline model: Williams, Waterman and Patterson, 2009). Stages
of one sequence run one after the other, so their times add up.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.planning.fit import Footprint
from edgellm.planning.seats import Seat
from edgellm.types.plan import Prediction

STEP_S = 0.004
"""One stage's share of an engine step beside reading memory (scheduling, Ray's hand-over, kernel launches): two CPU stages
of a tiny model, whose weights take no time, decode four sequences at 335 to 512 tok/s, so 8 to 12 ms a step."""

ALL_REDUCE_S = {"cpu": 200e-6, "cuda": 25e-6}
"""A small all-reduce between devices of one machine; a tensor-parallel layer does two. Estimates: gloo or shared memory
between processes, and NCCL over PCIe."""

Ranges = tuple[tuple[int, int], ...]
"""For each stage its layers [first, end): none empty, and together all layers of the model in order."""


def decode_read_bytes(need: Footprint, first: int, end: int) -> int:
    """Weights that a stage reads for one token, all its ranks together: its layers, and the output projection on the
    last stage (a tied embedding serves as one). Looking a token up in the embedding reads next to nothing.
    """
    shape = need.shape
    read = need.layer_bytes(first, end)
    if end == shape.layers:
        read += shape.head_bytes + (shape.embedding_bytes if shape.tied_embeddings else 0)
    return read


def kv_read_bytes(need: Footprint) -> int:
    """KV cache that all stages together read for one token, with the context half full."""
    shape = need.shape
    return shape.kv_bytes_per_token_and_layer * need.context // 2 * shape.layers


def fixed_step_s(seat: Seat) -> float:
    """What a stage on `seat` adds to each token however few layers it has.

    The token passes head → stage 1 → ... → last stage → head. The delay between two hosts is not known; taken as half
    the round trip of each to the requester, all hops together are the sum of the stages' round trips.
    """
    return STEP_S + seat.round_trip_s


def prefill_flop(need: Footprint, first: int, end: int) -> float:
    """What layers [first, end) compute for one token of a prompt: a forward pass costs 2 FLOP per parameter and token
    (Kaplan et al. 2020, section 2.1). At least one: manifests are what hosts say.
    """
    return max(1.0, 2 * need.layer_bytes(first, end) / need.shape.element_bytes)


def predict(need: Footprint, seats: Sequence[Seat], ranges: Ranges) -> Prediction:
    """Rates of one sequence alone, its context half full."""
    shape = need.shape
    decode_s = prefill_s = 0.0
    kv_layer_bytes = kv_read_bytes(need) // shape.layers
    all_reduce_s = ALL_REDUCE_S.get(need.device_kind, 0.0) if need.tensor_parallel > 1 else 0.0
    for seat, (first, end) in zip(seats, ranges, strict=True):
        read_bytes = decode_read_bytes(need, first, end) + kv_layer_bytes * (end - first)
        decode_s += (
            read_bytes / seat.bandwidth_bytes_s + 2 * all_reduce_s * (end - first) + fixed_step_s(seat)
        )
        prefill_s += prefill_flop(need, first, end) / seat.flops
    return Prediction(decode_tok_s=1 / decode_s, prefill_tok_s=1 / max(prefill_s, 1e-12))
