"""Splits the layers of a model over hosts, and puts hosts into an order in which that works best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgellm.planning.fit import Footprint, ceil_div
from edgellm.planning.predict import Ranges, decode_read_bytes
from edgellm.planning.seats import Seat


def split_layers(need: Footprint, seats: Sequence[Seat]) -> Ranges | None:
    """The layers of each seat, as near to its share of the speed as memory allows; None if they do not fit.

    Minimises sum(b²/v) over the stages, b the bytes a stage reads for a token and v the seat's speed. That is the same as
    least squares from proportionality, sum(v * (b/v - T)²) with T = sum(b)/sum(v): the two differ by a constant. Exact,
    by dynamic programming over (stage, end), since neither layers nor seats need be equal. O(stages * layers²).
    """
    layers, stages = need.shape.layers, len(seats)
    if not 0 < stages <= layers:
        return None
    best: dict[int, tuple[float, Ranges]] = {0: (0.0, ())}
    for stage, seat in enumerate(seats, start=1):
        reached: dict[int, tuple[float, Ranges]] = {}
        for first, (cost, ranges) in best.items():
            nearest_end = first + 1 if stage < stages else layers
            for end in range(nearest_end, layers - (stages - stage) + 1):
                if need.stage_bytes(first, end) > seat.memory_bytes:
                    break
                total = cost + decode_read_bytes(need, first, end) ** 2 / seat.speed_bytes_s
                if end not in reached or total < reached[end][0]:
                    reached[end] = (total, (*ranges, (first, end)))
        best = reached
    return best[layers][1] if layers in best else None


def pack_layers(need: Footprint, seats: Sequence[Seat]) -> Ranges:
    """Each seat in turn takes as many layers as it can hold and the later ones leave, but at least one; the last, the rest.

    Layers of equal size that fit in this order at all fit so. At most as many seats as layers.
    """
    layers, first = need.shape.layers, 0
    ranges: list[tuple[int, int]] = []
    for later, seat in zip(range(len(seats) - 1, 0, -1), seats, strict=False):
        end = first + 1
        while end < layers - later and need.stage_bytes(first, end + 1) <= seat.memory_bytes:
            end += 1
        ranges.append((first, end))
        first = end
    return (*ranges, (first, layers))


def lacking_bytes(need: Footprint, seats: Sequence[Seat]) -> int:
    """What the packed seats lack, all their devices together. 0 if and only if the layers fit in this order."""
    lacks = sum(
        max(0, need.stage_bytes(first, end) - seat.memory_bytes)
        for seat, (first, end) in zip(seats, pack_layers(need, seats), strict=True)
    )
    if lacks and len(set(need.shape.layer_bytes)) > 1 and split_layers(need, seats) is not None:
        # Taking all it can hold, a seat may have left the next one a layer that is larger than that one holds.
        return 0
    return need.tensor_parallel * lacks


def largest_seats(need: Footprint, seats: Sequence[Seat], stages: int) -> tuple[Seat, ...]:
    """The `stages` seats with the most memory, in pipeline order: where these are too small, all others are."""
    return pipeline_order(need, sorted(seats, key=lambda s: (-s.memory_bytes, s.peer))[:stages])


def pipeline_order(need: Footprint, seats: Sequence[Seat]) -> tuple[Seat, ...]:
    """The seats with embedding and head where they displace the fewest layers; between the ends, by peer id.

    With layers of equal size the seats fit in this order if they fit in any.
    """
    if len(seats) < 2:
        return tuple(seats)
    shape, ranks = need.shape, need.tensor_parallel
    layer_bytes = need.layer_bytes(0, shape.layers) // (shape.layers * ranks) + need.kv_layer_bytes
    last_bytes = shape.head_bytes + (shape.embedding_bytes if shape.tied_embeddings else 0)

    def displaced(seat: Seat, extra_bytes: int) -> float:
        free_bytes = seat.memory_bytes - need.overhead_bytes
        kept = (free_bytes - ceil_div(extra_bytes, ranks)) // layer_bytes
        return (
            min(free_bytes // layer_bytes, shape.layers) - min(kept, shape.layers) if kept > 0 else math.inf
        )

    def cheapest_two(extra_bytes: int) -> list[Seat]:
        return sorted(seats, key=lambda s: (displaced(s, extra_bytes), -s.bandwidth_bytes_s, s.peer))[:2]

    first, last = min(
        ((f, e) for f in cheapest_two(shape.embedding_bytes) for e in cheapest_two(last_bytes) if f is not e),
        key=lambda ends: displaced(ends[0], shape.embedding_bytes) + displaced(ends[1], last_bytes),
    )
    middle = sorted((seat for seat in seats if seat is not first and seat is not last), key=lambda s: s.peer)
    return (first, *middle, last)
