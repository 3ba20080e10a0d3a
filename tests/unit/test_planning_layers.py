"""Memory of a stage, and layers split over hosts, against hand calculation and brute force."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.planning.fit import ENGINE_BYTES, Footprint, footprint
from edgellm.planning.layers import lacking_bytes, largest_seats, pack_layers, pipeline_order, split_layers
from edgellm.planning.predict import ALL_REDUCE_S, Ranges, decode_read_bytes, predict
from edgellm.planning.seats import Seat
from edgellm.types.model import ModelShape
from tests.unit.planning_samples import GIB, MIB, model, overhead, seat


def need_of(
    shape: ModelShape, *, tp: int = 1, context: int = 1024, sequences: int = 1, kind: str = "cpu"
) -> Footprint:
    return footprint(shape, tensor_parallel=tp, context=context, sequences=sequences, device_kind=kind)


def test_kv_cache_by_hand() -> None:
    # 1024 tokens are 8 blocks of 128, and the null block: 9 * 128 tokens of 2 * 8 * 128 * 2 bytes.
    assert need_of(model()).kv_layer_bytes == 9 * 128 * 4096
    assert need_of(model(), context=1025).kv_layer_bytes == 10 * 128 * 4096
    assert need_of(model(), sequences=3).kv_layer_bytes == (3 * 8 + 1) * 128 * 4096
    assert need_of(model(), kind="cuda").kv_layer_bytes == (1024 // 16 + 1) * 16 * 4096
    assert need_of(model(), tp=4).kv_layer_bytes == 9 * 128 * 1024
    # With 16 ranks for 8 KV heads each rank still holds one.
    assert need_of(model(), tp=16).kv_layer_bytes == 9 * 128 * 512


def test_overhead_by_hand() -> None:
    # Activations of 1024 tokens: 16 vectors of 32 * 128 elements of 2 bytes.
    assert need_of(model()).overhead_bytes == ENGINE_BYTES["cpu"] + 1024 * 16 * 4096 * 2
    assert need_of(model(), context=4096).overhead_bytes == ENGINE_BYTES["cpu"] + 2048 * 16 * 4096 * 2


def test_stages_by_hand() -> None:
    need = need_of(model())
    fixed, kv = need.overhead_bytes, 9 * 128 * 4096
    assert need.stage_bytes(0, 4) == 600 * MIB + 4 * kv + fixed
    assert need.stage_bytes(4, 8) == 400 * MIB + 4 * kv + fixed
    assert need.stage_bytes(8, 12) == 600 * MIB + 4 * kv + fixed
    assert need.stage_bytes(0, 12) == 1600 * MIB + 12 * kv + fixed
    assert need_of(model(), tp=4).stage_bytes(0, 12) == 400 * MIB + 12 * kv // 4 + fixed


def test_a_tied_embedding_is_held_at_both_ends_and_once_by_a_single_stage() -> None:
    need = need_of(model(head=0, tied=True))
    assert need.weights_bytes(0, 6) == 800 * MIB
    assert need.weights_bytes(6, 12) == 800 * MIB
    assert need.weights_bytes(0, 12) == 1400 * MIB


def test_equal_hosts_share_equally() -> None:
    need = need_of(model(embedding=0, head=0))
    assert split_layers(need, [seat("a"), seat("b"), seat("c")]) == ((0, 4), (4, 8), (8, 12))


def test_layers_follow_speed() -> None:
    need = need_of(model(embedding=0, head=0))
    assert split_layers(need, [seat("a", bandwidth=10e9), seat("b", bandwidth=30e9)]) == ((0, 3), (3, 12))


def test_the_head_weighs_like_the_layers_it_is_as_large_as() -> None:
    # 12 layers and a head worth 2: 7 units each. The embedding is looked up, not read.
    need = need_of(model(embedding=900 * MIB, head=200 * MIB))
    assert split_layers(need, [seat("a"), seat("b")]) == ((0, 7), (7, 12))


def test_memory_caps_a_fast_host() -> None:
    need = need_of(model(embedding=0, head=0))
    small = need.stage_bytes(0, 2)
    assert split_layers(need, [seat("a", small, 100e9), seat("b")]) == ((0, 2), (2, 12))
    assert split_layers(need, [seat("a", small - 1, 100e9), seat("b")]) == ((0, 1), (1, 12))


def test_what_does_not_fit() -> None:
    need = need_of(model(embedding=0, head=0))
    half = need.stage_bytes(0, 6)
    assert split_layers(need, [seat("a", half), seat("b", half)]) == ((0, 6), (6, 12))
    assert split_layers(need, [seat("a", half), seat("b", half - 1)]) is None
    assert lacking_bytes(need, [seat("a", half), seat("b", half - 1)]) == 1
    assert lacking_bytes(
        need, [seat("a", half), seat("b", need.stage_bytes(0, 4))]
    ) == half - need.stage_bytes(0, 4)
    assert split_layers(need, []) is None
    assert split_layers(need_of(model(layers=(MIB,))), [seat("a"), seat("b")]) is None


def test_a_seat_that_takes_less_than_it_could_spares_the_next_a_large_layer() -> None:
    need = need_of(model(layers=(10 * MIB, 10 * MIB, 30 * MIB, 10 * MIB), embedding=0, head=0))
    two_small = need.stage_bytes(0, 2)
    seats = [seat("a", two_small), seat("b", two_small), seat("c", need.stage_bytes(2, 4))]
    assert split_layers(need, seats) == ((0, 1), (1, 2), (2, 4))
    assert lacking_bytes(need, seats) == 0


def test_the_ends_go_where_they_displace_nothing() -> None:
    need = need_of(model(embedding=150 * MIB, head=150 * MIB))
    layer = need.stage_bytes(1, 2) - overhead()
    # "b" and "d" have room for the embedding beside whole layers; "a" and "c" do not.
    tight, roomy = overhead() + 3 * layer, overhead() + 3 * layer + 150 * MIB
    seats = [seat("a", tight), seat("b", roomy), seat("c", tight), seat("d", roomy)]
    ordered = pipeline_order(need, seats)
    assert [s.peer for s in ordered] == ["b", "a", "c", "d"]
    assert split_layers(need, ordered) == ((0, 3), (3, 6), (6, 9), (9, 12))


def test_prediction_by_hand() -> None:
    shape = model(embedding=0, head=200 * MIB)
    two = predict(need_of(shape), [seat("a"), seat("b")], ((0, 6), (6, 12)))
    kv_read = 12 * 512 * 4096  # half of the context
    decode_s = (1400 * MIB + kv_read) / 20e9 + 2 * (0.004 + 0.001)
    assert two.decode_tok_s == pytest.approx(1 / decode_s)
    # 1200 MiB of layers are 600 Mi parameters; 2 FLOP each, at 1 TFLOP/s.
    assert two.prefill_tok_s == pytest.approx(1e12 / (2 * 600 * MIB))


def test_tensor_parallel_layers_pay_for_two_all_reduces() -> None:
    shape = model(embedding=0, head=0)
    one = predict(need_of(shape), [seat("a")], ((0, 12),))
    two = predict(need_of(shape, tp=2), [seat("a")], ((0, 12),))
    assert 1 / two.decode_tok_s - 1 / one.decode_tok_s == pytest.approx(12 * 2 * ALL_REDUCE_S["cpu"])


# --- properties ---------------------------------------------------------------------------------------------------

sizes = st.integers(0, 40).map(lambda n: n * 10 * MIB)
shapes = st.builds(
    model,
    layers=st.lists(st.integers(1, 30).map(lambda n: n * 10 * MIB), min_size=1, max_size=10),
    embedding=sizes,
    head=sizes,
    tied=st.booleans(),
)
equal_shapes = st.builds(
    lambda layers, layer, embedding, head, tied: model(
        layers=(layer,) * layers, embedding=embedding, head=head, tied=tied
    ),
    layers=st.integers(1, 9),
    layer=st.integers(1, 20).map(lambda n: n * 10 * MIB),
    embedding=sizes,
    head=sizes,
    tied=st.booleans(),
)
memories = st.integers(0, 120).map(lambda n: GIB + n * 20 * MIB)
seat_lists = st.lists(st.tuples(memories, st.integers(1, 50)), min_size=1, max_size=4).map(
    lambda rows: [seat(chr(97 + i), memory, speed * 1e9) for i, (memory, speed) in enumerate(rows)]
)


def every_split(need: Footprint, seats: list[Seat]) -> list[Ranges]:
    layers = need.shape.layers
    cuts = ((0, *inner, layers) for inner in combinations(range(1, layers), len(seats) - 1))
    splits = (tuple(pairwise(cut)) for cut in cuts)
    return [split for split in splits if holds(need, seats, split)]


def holds(need: Footprint, seats: list[Seat], split: Ranges) -> bool:
    return all(need.stage_bytes(*range_) <= s.memory_bytes for s, range_ in zip(seats, split, strict=True))


def cost(need: Footprint, seats: list[Seat], split: Ranges) -> float:
    return sum(
        decode_read_bytes(need, *r) ** 2 / s.bandwidth_bytes_s for s, r in zip(seats, split, strict=True)
    )


@given(shape=shapes, seats=seat_lists)
def test_the_split_is_the_best_of_all(shape: ModelShape, seats: list[Seat]) -> None:
    need = need_of(shape)
    found, possible = split_layers(need, seats), every_split(need, seats)
    if found is None:
        assert possible == []
        return
    assert found in possible
    assert cost(need, seats, found) == pytest.approx(min(cost(need, seats, split) for split in possible))


@given(shape=shapes, seats=seat_lists)
def test_lacking_nothing_is_fitting(shape: ModelShape, seats: list[Seat]) -> None:
    need = need_of(shape)
    if len(seats) <= shape.layers:
        assert (lacking_bytes(need, seats) == 0) == (split_layers(need, seats) is not None)
        packed = pack_layers(need, seats)
        assert [layer for first, end in packed for layer in range(first, end)] == list(range(shape.layers))


@settings(max_examples=200)
@given(shape=equal_shapes, seats=seat_lists)
def test_with_equal_layers_the_order_fits_if_any_does(shape: ModelShape, seats: list[Seat]) -> None:
    need = need_of(shape)
    if len(seats) <= shape.layers:
        fits = lacking_bytes(need, pipeline_order(need, seats)) == 0
        assert fits == any(lacking_bytes(need, order) == 0 for order in permutations(seats))


@given(shape=equal_shapes, seats=seat_lists, count=st.integers(1, 3))
def test_where_the_largest_do_not_fit_no_others_do(shape: ModelShape, seats: list[Seat], count: int) -> None:
    need = need_of(shape)
    if count <= min(len(seats), shape.layers) and lacking_bytes(need, largest_seats(need, seats, count)):
        for chosen in permutations(seats, count):
            assert split_layers(need, chosen) is None
