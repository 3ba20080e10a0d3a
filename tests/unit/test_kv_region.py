"""Which pieces make up which: whatever the shapes, the values are those of the whole cache, or there is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import UsageError
from edgellm.kv.region import Region, assemble, cover, rank_region

LAYERS, HEADS, TOKENS, WIDTH = 6, 4, 3, 2

regions = st.builds(
    lambda layers, heads: Region(layers[0], layers[1], heads[0], heads[1]),
    st.tuples(st.integers(0, LAYERS), st.integers(0, LAYERS)).filter(lambda pair: pair[0] < pair[1]),
    st.tuples(st.integers(0, HEADS), st.integers(0, HEADS)).filter(lambda pair: pair[0] < pair[1]),
)


def values(region: Region) -> bytes:
    """What a cache whose every byte says where it is holds there."""
    return bytes(
        (layer * 41 + token * 17 + head * 5 + byte) % 256
        for layer in range(region.first_layer, region.end_layer)
        for token in range(TOKENS)
        for head in range(region.first_head, region.end_head)
        for byte in range(WIDTH)
    )


# As clusters cut: in two or three stages, in halves of the heads.
usual = st.sampled_from(
    [
        Region(first, end, head, end_head)
        for first, end in [(0, 6), (0, 3), (3, 6), (0, 2), (2, 4), (4, 6)]
        for head, end_head in [(0, 4), (0, 2), (2, 4)]
    ]
)


@given(regions, st.lists(usual | regions, max_size=8))
def test_what_covers_is_put_together_right(wanted: Region, available: list[Region]) -> None:
    chosen = cover(wanted, available)
    cells = {
        (layer, head)
        for layer in range(wanted.first_layer, wanted.end_layer)
        for head in range(wanted.first_head, wanted.end_head)
    }
    there = {
        (layer, head)
        for region in available
        for layer in range(region.first_layer, region.end_layer)
        for head in range(region.first_head, region.end_head)
    }
    assert (chosen is not None) == (cells <= there)
    assert cover(wanted, reversed(available)) == chosen
    if chosen is None:
        return
    assert set(chosen) <= set(available)
    pieces = [(region, values(region)) for region in chosen]
    assert assemble(wanted, pieces, TOKENS, WIDTH) == values(wanted)


def test_the_piece_itself_is_enough() -> None:
    wanted = Region(0, 3, 0, 4)
    assert cover(wanted, [Region(0, 6, 0, 4), wanted, Region(0, 3, 0, 2)]) == (wanted,)


def test_a_gap_is_not_filled() -> None:
    wanted, half = Region(0, 2, 0, 4), Region(0, 2, 0, 2)
    assert cover(wanted, [half]) is None
    with pytest.raises(UsageError, match="gap"):
        assemble(wanted, [(half, values(half))], TOKENS, WIDTH)


def test_a_piece_of_another_size_is_refused() -> None:
    wanted = Region(0, 2, 0, 4)
    with pytest.raises(UsageError, match="bytes"):
        assemble(wanted, [(wanted, values(wanted)[:-1])], TOKENS, WIDTH)


@pytest.mark.parametrize(
    "numbers", [(0, 0, 0, 1), (2, 1, 0, 1), (0, 1, 1, 1), (-1, 1, 0, 1), (0, 5000, 0, 1), (0, 1, 0, 5000)]
)
def test_no_region(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError):
        Region(*numbers)


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8, 16]))
def test_ranks_of_a_stage_have_all_heads_evenly(kv_heads: int, tensor_parallel: int) -> None:
    ranks = [
        rank_region(
            first_layer=2, end_layer=5, kv_heads=kv_heads, tensor_parallel=tensor_parallel, tensor_rank=rank
        )
        for rank in range(tensor_parallel)
    ]
    assert cover(Region(2, 5, 0, kv_heads), ranks) is not None
    assert len({region.heads for region in ranks}) == 1
    assert sum(region.heads for region in ranks) == max(kv_heads, tensor_parallel)
    assert ranks == sorted(ranks)


def test_heads_that_do_not_come_out_even() -> None:
    with pytest.raises(UsageError, match="6 KV heads"):
        rank_region(first_layer=0, end_layer=1, kv_heads=6, tensor_parallel=4, tensor_rank=0)
