"""Layers and KV heads: which part of a model's KV cache a piece holds, and how parts make up another part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgellm.errors import UsageError

MAX_LAYERS = 1024
MAX_HEADS = 4096


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """Layers [first_layer, end_layer) and KV heads [first_head, end_head) of a model. Raises UsageError for an empty one."""

    first_layer: int
    end_layer: int
    first_head: int
    end_head: int

    def __post_init__(self) -> None:
        if not (
            0 <= self.first_layer < self.end_layer <= MAX_LAYERS
            and 0 <= self.first_head < self.end_head <= MAX_HEADS
        ):
            layers, heads = f"{self.first_layer} to {self.end_layer}", f"{self.first_head} to {self.end_head}"
            raise UsageError(f"layers {layers}, heads {heads} are no part of a KV cache")

    @property
    def layers(self) -> int:
        return self.end_layer - self.first_layer

    @property
    def heads(self) -> int:
        return self.end_head - self.first_head

    def overlaps(self, other: Region) -> bool:
        """Whether they have a layer and a head in common."""
        return (
            self.first_layer < other.end_layer
            and other.first_layer < self.end_layer
            and self.first_head < other.end_head
            and other.first_head < self.end_head
        )


def rank_region(
    *, first_layer: int, end_layer: int, kv_heads: int, tensor_parallel: int, tensor_rank: int
) -> Region:
    """What one rank of a stage holds, as vLLM shares KV heads out: evenly, and each several times where there are more ranks
    than heads. Raises UsageError where they do not come out even.
    """
    if max(kv_heads, tensor_parallel) % min(kv_heads, tensor_parallel):
        raise UsageError(f"{kv_heads} KV heads cannot be shared out to {tensor_parallel} ranks")
    heads = max(1, kv_heads // tensor_parallel)
    ranks_of_a_head = max(1, tensor_parallel // kv_heads)
    first_head = tensor_rank // ranks_of_a_head * heads
    return Region(first_layer, end_layer, first_head, first_head + heads)


def cover(wanted: Region, available: Iterable[Region]) -> tuple[Region, ...] | None:
    """Regions that together have all of `wanted`, the ones that give most first; None where there is a gap.

    The region itself alone where it is there. The same for the same set, whatever its order.
    """
    usable = sorted({region for region in available if region.overlaps(wanted)})
    if wanted in usable:
        return (wanted,)
    missing = _cells(wanted, usable)
    chosen: list[Region] = []
    while missing:
        best = max(usable, key=lambda region: _area(missing, region), default=None)
        left = [cell for cell in missing if best is None or not cell.overlaps(best)]
        if best is None or len(left) == len(missing):
            return None
        chosen.append(best)
        missing = left
    return tuple(chosen)


def assemble(
    wanted: Region, pieces: Sequence[tuple[Region, bytes]], chunk_tokens: int, bytes_per_head_token: int
) -> bytes:
    """The values of `wanted` out of pieces that cover it.

    All are laid out as layer, token, head, `bytes_per_head_token`. Raises UsageError for a piece of another size, or a gap.
    """
    for region, content in pieces:
        if len(content) != region.layers * chunk_tokens * region.heads * bytes_per_head_token:
            raise UsageError(f"a piece of {region} has {len(content)} bytes")
        if region == wanted:
            return content
    if cover(wanted, [region for region, _ in pieces]) is None:
        raise UsageError(f"the pieces leave a gap in {wanted}")
    # Only cells need it, and only there it is.
    import numpy as np

    whole = np.empty((wanted.layers, chunk_tokens, wanted.heads, bytes_per_head_token), np.uint8)
    for region, content in pieces:
        if not region.overlaps(wanted):
            continue
        piece = np.frombuffer(content, np.uint8).reshape(region.layers, chunk_tokens, region.heads, -1)
        first_layer, end_layer = (
            max(wanted.first_layer, region.first_layer),
            min(wanted.end_layer, region.end_layer),
        )
        first_head, end_head = (
            max(wanted.first_head, region.first_head),
            min(wanted.end_head, region.end_head),
        )
        whole[
            first_layer - wanted.first_layer : end_layer - wanted.first_layer,
            :,
            first_head - wanted.first_head : end_head - wanted.first_head,
        ] = piece[
            first_layer - region.first_layer : end_layer - region.first_layer,
            :,
            first_head - region.first_head : end_head - region.first_head,
        ]
    return whole.tobytes()


def _cells(wanted: Region, regions: Sequence[Region]) -> list[Region]:
    """`wanted`, cut wherever one of the regions begins or ends."""
    layers = {wanted.first_layer, wanted.end_layer}
    heads = {wanted.first_head, wanted.end_head}
    for region in regions:
        layers |= {region.first_layer, region.end_layer}
        heads |= {region.first_head, region.end_head}
    rows = sorted(layer for layer in layers if wanted.first_layer <= layer <= wanted.end_layer)
    columns = sorted(head for head in heads if wanted.first_head <= head <= wanted.end_head)
    return [
        Region(first_layer, end_layer, first_head, end_head)
        for first_layer, end_layer in pairwise(rows)
        for first_head, end_head in pairwise(columns)
    ]


def _area(cells: Sequence[Region], region: Region) -> int:
    return sum(cell.layers * cell.heads for cell in cells if cell.overlaps(region))
