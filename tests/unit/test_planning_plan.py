"""Plans: which hosts and which shape, and why there is none."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import PlanError
from edgellm.planning import describe, make_plan
from edgellm.planning.fit import footprint
from edgellm.types.advert import Engine
from edgellm.types.model import ModelShape
from edgellm.types.plan import Candidate, PlanRequest, StagePlan, Workload
from tests.unit.planning_samples import (
    CPU,
    GIB,
    MIB,
    OTHER,
    ask,
    host,
    layers_of,
    model,
    overhead,
)


def whole(**kwargs: int) -> int:
    """Memory that one device needs for the whole sample model."""
    return footprint(model(), tensor_parallel=1, context=1024, sequences=1, device_kind="cpu").stage_bytes(
        0, 12
    )


def error_of(request: PlanRequest, *candidates: Candidate) -> PlanError:
    with pytest.raises(PlanError) as caught:
        make_plan(request, candidates)
    assert "\n" not in str(caught.value)
    return caught.value


def test_one_host_that_holds_it_all_is_enough() -> None:
    plan = make_plan(ask(), [host("b"), host("a"), host("c")])
    assert layers_of(plan) == {"a": 12}
    assert (plan.tensor_parallel, plan.pipeline_parallel, plan.engine) == (1, 1, CPU)
    assert plan.stages[0].memory_bytes == whole()
    assert plan.stages[0].devices == ("0",)
    assert plan.kv_cache_bytes == 12 * 9 * 128 * 4096


def test_the_faster_and_the_nearer_host_is_taken() -> None:
    assert layers_of(make_plan(ask(), [host("a"), host("b", bandwidth=30e9)])) == {"b": 12}
    assert layers_of(make_plan(ask(), [host("a", round_trip=0.2), host("b", round_trip=0.01)])) == {"b": 12}


def test_a_model_too_big_for_one_is_spread_over_as_few_as_can_hold_it() -> None:
    part = whole() - 500 * MIB
    plan = make_plan(ask(), [host("a", part), host("b", part), host("c", part)])
    assert len(plan.stages) == 2
    # Embedding at one end, head at the other; the head is read for every token, so its host gets fewer layers.
    assert [(s.first_layer, s.end_layer) for s in plan.stages] == [(0, 7), (7, 12)]
    assert plan.kv_cache_bytes == 7 * 9 * 128 * 4096
    assert all(stage.memory_bytes <= part for stage in plan.stages)


def test_three_fast_small_hosts_beat_one_slow_large_one() -> None:
    small = overhead() + 700 * MIB
    hosts = [host("slow", 64 * GIB, bandwidth=2e9), *(host(p, small, bandwidth=50e9) for p in "abc")]
    assert set(layers_of(make_plan(ask(), hosts))) == {"a", "b", "c"}


def test_devices_of_one_host_work_in_tensor_parallel() -> None:
    plan = make_plan(ask(), [host("a", devices=4)])
    assert (plan.tensor_parallel, plan.pipeline_parallel) == (4, 1)
    assert plan.stages[0].devices == ("0", "1", "2", "3")
    # Three devices: 3 divides neither 32 heads nor 8 KV heads.
    assert make_plan(ask(), [host("a", devices=3)]).tensor_parallel == 2


def test_tensor_parallelism_beyond_the_kv_heads_repeats_them() -> None:
    plan = make_plan(ask(model(kv_heads=2)), [host("a", devices=8)])
    assert plan.tensor_parallel == 8


def test_all_stages_have_one_degree_and_lend_exactly_so_many_devices() -> None:
    plan = make_plan(ask(tp=2, pp=2), [host("a", devices=4), host("b", devices=2), host("c", devices=1)])
    assert plan.tensor_parallel == 2
    assert {stage.peer: len(stage.devices) for stage in plan.stages} == {"a": 2, "b": 2}


def test_the_largest_devices_of_a_host_are_lent() -> None:
    mixed = host("a", devices=3)
    sizes = [2 * GIB, 9 * GIB, 8 * GIB]
    mixed = replace(
        mixed, devices=tuple(replace(d, memory_bytes=m) for d, m in zip(mixed.devices, sizes, strict=True))
    )
    assert make_plan(ask(tp=2), [mixed]).stages[0].devices == ("1", "2")
    # Ranks are equal, so the smaller device decides.
    short = replace(mixed, devices=(mixed.devices[1], replace(mixed.devices[2], memory_bytes=GIB)))
    assert "is too big" in str(error_of(ask(tp=2), short))


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_an_asked_number_of_stages_is_kept(stages: int) -> None:
    assert make_plan(ask(pp=stages), [host("a"), host("b"), host("c")]).pipeline_parallel == stages


def test_only_asked_peers_serve() -> None:
    hosts = [
        host("12D3KooWaaa", name="ann"),
        host("12D3KooWabb", name="bob"),
        host("12D3KooWccc", name="eve"),
    ]
    for asked, peer in (("eve", "12D3KooWccc"), ("12D3KooWc", "12D3KooWccc"), ("12D3KooWabb", "12D3KooWabb")):
        assert list(layers_of(make_plan(ask(peers=(asked,)), hosts))) == [peer]
    both = make_plan(ask(peers=("ann", "eve"), pp=2), hosts)
    assert set(layers_of(both)) == {"12D3KooWaaa", "12D3KooWccc"}


def test_engines_are_never_mixed_and_the_better_group_wins() -> None:
    part = whole() - 500 * MIB
    slow = [host("a", part), host("b", part)]
    fast = [host("c", part, engine=OTHER, bandwidth=40e9), host("d", part, engine=OTHER, bandwidth=40e9)]
    plan = make_plan(ask(), slow + fast)
    assert plan.engine == OTHER
    assert set(layers_of(plan)) == {"c", "d"}
    assert make_plan(ask(), slow + fast[:1]).engine == CPU


def test_hosts_of_other_files_are_left_out() -> None:
    fast_other = host("b", bandwidth=90e9, digest="cd" * 32)
    assert layers_of(make_plan(ask(), [host("a"), fast_other])) == {"a": 12}


def test_rates_that_are_no_rates_do_not_break_planning() -> None:
    hosts = [host("a", bandwidth=0.0), host("b", bandwidth=float("nan")), host("c", bandwidth=float("inf"))]
    assert make_plan(ask(pp=3), hosts).prediction.decode_tok_s > 0


# --- refusals -----------------------------------------------------------------------------------------------------


def test_too_big_says_how_much_is_missing_and_that_much_more_is_enough() -> None:
    short = overhead() + 600 * MIB
    hosts = [host("a", short), host("b", short)]
    need = footprint(model(), tensor_parallel=1, context=1024, sequences=1, device_kind="cpu")
    # "a" takes the embedding and as many layers as then fit: 3 of 104.5 MiB; "b" lacks the rest and the head.
    assert need.stage_bytes(0, 3) <= short < need.stage_bytes(0, 4)
    missing = need.stage_bytes(3, 12) - short
    error = error_of(ask(), *hosts)
    assert f"{missing / MIB:.0f} MiB is missing" in str(error)
    assert "org/model is too big: it needs" in str(error)
    assert "weights 1.56 GiB" in str(error)
    assert "KV cache for 1,024 tokens 54.0 MiB" in str(error)
    assert "the 2 hosts offering it" in str(error)
    assert "add hosts" in error.remedy
    with pytest.raises(PlanError):
        make_plan(ask(), [hosts[0], host("b", short + missing - 1)])
    assert set(layers_of(make_plan(ask(), [hosts[0], host("b", short + missing)]))) == {"a", "b"}


def test_hosts_too_small_for_a_single_layer() -> None:
    tiny = error_of(ask(), host("a", 10 * MIB), host("b", 10 * MIB), host("c", 10 * MIB))
    assert "the host that can hold most of it" in str(tiny)
    assert "is missing" in str(tiny)


def test_nobody() -> None:
    assert "no host offers org/model" in str(error_of(ask()))


def test_no_fabric() -> None:
    error = error_of(replace(ask(), fabric="direct"), host("a"))
    assert "offers the direct network; offered: overlay" in str(error)
    assert "--network" in error.remedy


def test_every_device_is_lent() -> None:
    assert "every device" in str(error_of(ask(), host("a", devices=0)))


def test_engines_differ() -> None:
    part = whole() - 500 * MIB
    for request in (ask(), ask(pp=2)):
        error = error_of(request, host("a", part), host("b", part, engine=OTHER))
        assert "vllm/cpu (vllm 0.32.0): host-a (a); vllm/cpu (vllm 0.33.0): host-b (b)" in str(error)
        assert "same engine" in error.remedy


def test_digests_differ() -> None:
    error = error_of(ask(), host("a", digest="cd" * 32), host("b", digest="ef" * 32))
    assert "digest abababababab (host-a (a): cdcdcdcdcdcd, host-b (b): efefefefefef)" in str(error)


@pytest.mark.parametrize("degree", [0, -1, 3, 64])
def test_heads_that_the_degree_does_not_divide(degree: int) -> None:
    error = error_of(ask(tp=degree), host("a", devices=8))
    assert "32 attention heads and 8 KV heads" in str(error)
    assert error.remedy == "possible values of --tp: 1, 2, 4, 8, 16, 32"


def test_more_devices_than_any_host_has() -> None:
    error = error_of(ask(tp=4), host("a", devices=2), host("b", devices=1))
    assert "--tp 4 needs a host with 4 free devices; the most is 2, host-a (a)" in str(error)


def test_more_stages_than_hosts_or_layers() -> None:
    assert "--pp 3 needs 3 hosts; 2 offer" in str(error_of(ask(pp=3), host("a"), host("b")))
    assert "12 layers" in str(error_of(ask(pp=13), host("a")))
    both = error_of(ask(pp=2, tp=2), host("a", devices=2), host("b"))
    assert "--pp 2 needs 2 hosts with 2 free devices each; 1 offer" in str(both)


def test_unknown_and_ambiguous_peers() -> None:
    hosts = (host("12D3KooWaaa", name="ann"), host("12D3KooWabb", name="ann"))
    assert "no host of the model is called 'zoe'" in str(error_of(ask(peers=("zoe",)), *hosts))
    for asked in ("ann", "12D3KooWa"):
        error = error_of(ask(peers=(asked,)), *hosts)
        assert "means 2 hosts: ann (12D3KooWaaa), ann (12D3KooWabb)" in str(error)


def test_a_context_longer_than_the_models() -> None:
    assert "4,096 tokens; 5,000 are asked for" in str(error_of(ask(context=5000), host("a")))


def test_a_plan_in_words() -> None:
    plan = make_plan(ask(tp=2, pp=2), [host("a", devices=2, name="alice"), host("b", devices=2, name="bo")])
    lines = describe(plan).splitlines()
    assert lines[0] == "org/model on 2 hosts, 2 devices each (TP=2, PP=2), context 1,024 tokens"
    assert lines[1].split() == ["alice", "layers", "0-6", *lines[1].split()[3:]]
    assert "per device" in lines[2]
    assert "tok/s" in lines[3]


# --- properties ---------------------------------------------------------------------------------------------------

engines = st.sampled_from([CPU, OTHER])
memories = st.integers(0, 90).map(lambda n: GIB + n * 25 * MIB)
equal_layers = st.builds(
    lambda layers, size, tied: model(layers=(size * MIB,) * layers, tied=tied, heads=4, kv_heads=2),
    st.integers(1, 16),
    st.integers(10, 200),
    st.booleans(),
)
rows = st.lists(st.tuples(memories, st.integers(1, 60), st.integers(1, 3), engines), min_size=1, max_size=6)


def hosts_of(drawn: list[tuple[int, int, int, Engine]]) -> list[Candidate]:
    return [
        host(chr(97 + i), memory, bandwidth=speed * 1e9, devices=devices, engine=engine)
        for i, (memory, speed, devices, engine) in enumerate(drawn)
    ]


def outcome(request: PlanRequest, candidates: list[Candidate]) -> StagePlan | str:
    try:
        return make_plan(request, candidates)
    except PlanError as error:
        return str(error)


@given(shape=equal_layers, drawn=rows, context=st.sampled_from([1, 700, 4096]))
def test_every_plan_is_possible(
    shape: ModelShape, drawn: list[tuple[int, int, int, Engine]], context: int
) -> None:
    hosts = {candidate.peer: candidate for candidate in hosts_of(drawn)}
    plan = outcome(ask(shape, context=context), list(hosts.values()))
    if isinstance(plan, str):
        return
    assert [n for s in plan.stages for n in range(s.first_layer, s.end_layer)] == list(range(shape.layers))
    assert all(stage.end_layer > stage.first_layer for stage in plan.stages)
    assert len({stage.peer for stage in plan.stages}) == plan.pipeline_parallel
    for stage in plan.stages:
        candidate = hosts[stage.peer]
        lent = {device.id: device.memory_bytes for device in candidate.devices}
        assert candidate.engine == plan.engine
        assert len(stage.devices) == plan.tensor_parallel
        assert all(lent[device] >= stage.memory_bytes for device in stage.devices)


@given(shape=equal_layers, drawn=rows, seed=st.integers())
def test_the_order_of_candidates_does_not_matter(
    shape: ModelShape, drawn: list[tuple[int, int, int, Engine]], seed: int
) -> None:
    hosts = hosts_of(drawn)
    shuffled = random.Random(seed).sample(hosts, len(hosts))
    assert outcome(ask(shape), hosts) == outcome(ask(shape), shuffled)


@settings(max_examples=200)
@given(shape=equal_layers, drawn=rows, which=st.integers(0, 5), more=st.integers(1, 2 * GIB))
def test_more_memory_or_less_context_never_makes_it_not_fit(
    shape: ModelShape, drawn: list[tuple[int, int, int, Engine]], which: int, more: int
) -> None:
    if isinstance(outcome(ask(shape, context=2048), hosts_of(drawn)), str):
        return
    index = which % len(drawn)
    drawn[index] = (drawn[index][0] + more, *drawn[index][1:])
    assert isinstance(outcome(ask(shape, context=2048), hosts_of(drawn)), StagePlan)
    assert isinstance(outcome(ask(shape, context=1024), hosts_of(drawn)), StagePlan)


@given(
    shape=equal_layers, drawn=rows, extra=st.tuples(memories, st.integers(1, 60), st.integers(1, 3), engines)
)
def test_one_more_host_never_makes_it_not_fit(
    shape: ModelShape, drawn: list[tuple[int, int, int, Engine]], extra: tuple[int, int, int, Engine]
) -> None:
    if isinstance(outcome(ask(shape), hosts_of(drawn)), StagePlan):
        assert isinstance(outcome(ask(shape), hosts_of([*drawn, extra])), StagePlan)


def test_a_plan_that_is_too_slow_is_none_and_says_how_fast_it_would_be() -> None:
    hosts = [host("a", bandwidth=10e9, name="alice"), host("b", bandwidth=5e9)]
    speed = make_plan(ask(), hosts).prediction.decode_tok_s
    assert layers_of(make_plan(ask(min_tok_s=speed), hosts)) == {"a": 12}
    error = error_of(ask(min_tok_s=speed + 1), *hosts)
    assert f"the fastest plan, on alice, is expected to decode {speed:.1f} tok/s" in str(error)
    assert f"at least {speed + 1:g} is asked for" in str(error)
    assert "--min-tok-s" in error.remedy


def test_a_plan_that_prefills_sooner_but_decodes_too_slowly_gives_way() -> None:
    hosts = [host("strong", bandwidth=5e9, flops=1e14), host("near", bandwidth=10e9, flops=1e11)]
    long_prompt = Workload(prompt_tokens=4000, answer_tokens=1)
    assert layers_of(make_plan(ask(workload=long_prompt), hosts)) == {"strong": 12}
    decodes = make_plan(ask(), hosts).prediction.decode_tok_s
    request = ask(workload=long_prompt, min_tok_s=decodes)
    plan = make_plan(request, hosts)
    assert layers_of(plan) == {"near": 12}
    assert plan.request == request


def test_busy_hosts_are_left_out() -> None:
    hosts = [host("a", bandwidth=40e9, load=0.75, name="alice"), host("b", load=0.5, name="bob")]
    assert layers_of(make_plan(ask(max_load=0.75), hosts)) == {"a": 12}
    assert layers_of(make_plan(ask(max_load=0.7), hosts)) == {"b": 12}
    error = error_of(ask(max_load=0.4), *hosts)
    assert "busier than --max-load 0.4 allows (alice (a): 75%, bob (b): 50%)" in str(error)


def test_hosts_that_stop_lending_too_soon_are_left_out() -> None:
    fast, slow = host("a", 9 * GIB, bandwidth=60e9), host("b", 9 * GIB, bandwidth=6e9)
    ending = replace(fast, lends_for_s=90.0)
    assert layers_of(make_plan(ask(), (ending, slow))) == {"a": 12}
    assert layers_of(make_plan(replace(ask(), lasts_s=90.0), (ending, slow))) == {"a": 12}
    assert layers_of(make_plan(replace(ask(), lasts_s=90.1), (ending, slow))) == {"b": 12}
    error = error_of(replace(ask(), lasts_s=120.0), ending)
    assert "stops lending before 120 s are over" in str(error)
    assert "in 90 s" in str(error)


def test_a_swarm_of_hundreds_is_planned_quickly() -> None:
    chance = random.Random(1)
    hosts = [
        host(
            f"{i:03}",
            GIB + chance.randrange(2 * GIB),
            bandwidth=chance.uniform(5e9, 60e9),
            devices=chance.choice((1, 2, 4)),
        )
        for i in range(300)
    ]
    shape = model(layers=(600 * MIB,) * 64)
    plan = make_plan(ask(shape), hosts)
    assert sum(layers_of(plan).values()) == 64
