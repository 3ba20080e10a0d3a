"""Long prompts: which hosts a plan takes for them, and when prefill and decode are better on different ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import PlanError
from edgellm.planning import make_plan
from edgellm.planning.disaggregate import (
    HANDOVER_S,
    LEAST_PATIENCE_S,
    REST_TOKENS,
    TRANSFER_BYTES_S,
    Disaggregation,
    plan_disaggregated,
)
from edgellm.types.plan import Candidate, PlanRequest, Workload
from tests.unit.planning_samples import CPU, MIB, OTHER, ask, host, layers_of, model, overhead

LONG = Workload(prompt_tokens=3000, answer_tokens=200)
KV_BYTES = 12 * 4096
"""Of one token of the sample model."""
FAR_AND_FAST = host("far", flops=8e11, round_trip=0.2)
NEAR_AND_SLOW = host("near", flops=1e11, round_trip=0.001)


def two_of(request: PlanRequest, *candidates: Candidate) -> Disaggregation:
    found = plan_disaggregated(request, candidates)
    assert found is not None
    return found


def test_a_prompt_counts_as_much_as_it_takes() -> None:
    hosts = [host("reads", bandwidth=40e9, flops=1e12), host("computes", bandwidth=20e9, flops=8e12)]
    # 630 million parameters in the layers: 3,000 tokens take 3.8 s and 0.5 s, 200 tokens of answer 8 s and 15 s.
    assert layers_of(make_plan(ask(), hosts)) == {"reads": 12}
    assert layers_of(make_plan(ask(workload=LONG), hosts)) == {"reads": 12}
    assert layers_of(make_plan(ask(workload=Workload(3000, 20)), hosts)) == {"computes": 12}
    # Where engines reach a part of the arithmetic, prompts count for more.
    assert layers_of(make_plan(ask(workload=Workload(3000, 200, 0.2)), hosts)) == {"computes": 12}


def test_layers_are_split_by_what_the_work_is_bound_by() -> None:
    hosts = [
        host("a", overhead() + 1300 * MIB, bandwidth=10e9, flops=3e12),
        host("b", overhead() + 1300 * MIB, bandwidth=30e9, flops=1e12),
    ]
    decoding = layers_of(make_plan(ask(pp=2), hosts))
    prefilling = layers_of(make_plan(ask(pp=2, workload=Workload(100_000, 1)), hosts))
    assert decoding["a"] < decoding["b"]
    assert prefilling["a"] > prefilling["b"]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 100), st.integers(1, 100), st.integers(0, 200)), min_size=1, max_size=6
    ),
    st.builds(Workload, st.integers(0, 20_000), st.integers(1, 2000), st.sampled_from([0.1, 0.5, 1.0])),
)
def test_no_single_host_does_the_work_sooner_than_the_plan(
    rates: list[tuple[int, int, int]], workload: Workload
) -> None:
    request = ask(workload=workload)
    hosts = [
        host(f"p{index}", bandwidth=bandwidth * 1e9, flops=flops * 1e11, round_trip=trip / 1000)
        for index, (bandwidth, flops, trip) in enumerate(rates)
    ]
    best_s = workload.seconds(make_plan(request, hosts).prediction)
    for one in hosts:
        assert best_s <= workload.seconds(make_plan(request, [one]).prediction) * 1.000001


def test_the_far_one_prefills_and_the_near_one_decodes() -> None:
    request = ask(workload=LONG)
    two = two_of(request, NEAR_AND_SLOW, FAR_AND_FAST)
    assert (two.prefill.names, two.decode.names) == (("host-far",), ("host-near",))
    assert two.pays
    prefill, decode = two.prefill.plan.prediction, two.decode.plan.prediction
    assert two.predicted_s == pytest.approx(
        3000 / prefill.prefill_tok_s
        + 1 / prefill.decode_tok_s
        + HANDOVER_S
        + 3000 * KV_BYTES / TRANSFER_BYTES_S
        + REST_TOKENS / decode.prefill_tok_s
        + 200 / decode.decode_tok_s
    )
    assert two.alone_s == LONG.seconds(make_plan(request, [NEAR_AND_SLOW, FAR_AND_FAST]).prediction)
    # Waiting for the first cluster never costs more than doing its work, nor much more than it should take.
    assert two.patience_s == pytest.approx(5 + 2 * (3000 / prefill.prefill_tok_s + 1 / prefill.decode_tok_s))
    assert two.patience_s < 3000 / decode.prefill_tok_s


@pytest.mark.parametrize("workload", [Workload(100, 200), Workload(3000, 2), Workload(0, 200)])
def test_it_does_not_pay_where_one_half_of_the_work_is_small(workload: Workload) -> None:
    assert not two_of(ask(workload=workload), NEAR_AND_SLOW, FAR_AND_FAST).pays


def test_only_the_cluster_that_answers_must_be_as_fast_as_asked() -> None:
    two = two_of(ask(workload=LONG, min_tok_s=8), NEAR_AND_SLOW, FAR_AND_FAST)
    assert (two.prefill.names, two.decode.names) == (("host-far",), ("host-near",))
    assert two.prefill.plan.prediction.decode_tok_s < 8 < two.decode.plan.prediction.decode_tok_s


def test_it_does_not_pay_between_equals() -> None:
    assert not two_of(ask(workload=LONG), host("a"), host("b")).pays


def test_waiting_never_costs_more_than_computing() -> None:
    between_equals = two_of(ask(workload=LONG), host("a", flops=1e11), host("b", flops=1e11))
    itself_s = 3000 / between_equals.decode.plan.prediction.prefill_tok_s
    assert between_equals.patience_s == pytest.approx(itself_s)
    assert two_of(ask(workload=Workload(10, 10)), host("a"), host("b")).patience_s == LEAST_PATIENCE_S


def test_the_first_cluster_does_without_a_host_that_the_second_one_needs() -> None:
    """The fastest two are taken first, and neither of the others is enough alone."""
    part = overhead() + 900 * MIB
    hosts = [host("a", part), host("b", part, bandwidth=60e9, flops=5e12), host("c", overhead() + 4000 * MIB)]
    two = two_of(ask(workload=LONG), *hosts)
    assert {stage.peer for cast in (two.prefill, two.decode) for stage in cast.plan.stages} == {"a", "b", "c"}


def test_a_host_that_says_it_has_no_layers_is_no_division_by_zero() -> None:
    make_plan(ask(model(layers=(0,) * 12), workload=LONG), [host("a"), host("b")])


@pytest.mark.parametrize(
    "candidates",
    [
        (FAR_AND_FAST,),
        # KV of one is nothing to the other.
        (FAR_AND_FAST, host("near", kv_layout="amx")),
        (FAR_AND_FAST, host("near", engine=OTHER)),
        # Neither half of them holds the model.
        tuple(host(peer, overhead() + 900 * MIB) for peer in "abc"),
    ],
)
def test_there_are_no_two_clusters(candidates: tuple[Candidate, ...]) -> None:
    assert plan_disaggregated(ask(workload=LONG), candidates) is None


def test_where_not_even_one_cluster_is_possible_it_is_the_usual_error() -> None:
    with pytest.raises(PlanError, match="too big"):
        plan_disaggregated(ask(workload=LONG), [host("a", 100 * MIB)])


def test_only_hosts_that_the_user_named_take_part() -> None:
    hosts = (NEAR_AND_SLOW, FAR_AND_FAST, host("third", flops=9e11))
    assert two_of(ask(workload=LONG), *hosts).prefill.names == ("host-third",)
    two = two_of(ask(workload=LONG, peers=("host-near", "far")), *hosts)
    assert (two.prefill.names, two.decode.names) == (("host-far",), ("host-near",))
    assert {one.peer for cast in (two.prefill, two.decode) for one in cast.candidates} == {"near", "far"}
    assert plan_disaggregated(ask(workload=LONG, peers=("far",)), hosts) is None


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 100), st.integers(1, 100), st.sampled_from([900, 1400, 4000]), st.booleans()
        ),
        min_size=2,
        max_size=6,
    )
)
def test_two_clusters_share_no_host_and_can_read_each_other(
    hosts_of: list[tuple[int, int, int, bool]],
) -> None:
    hosts = [
        host(
            f"p{index}",
            overhead() + memory * MIB,
            bandwidth=bandwidth * 1e9,
            flops=flops * 1e11,
            kv_layout="vec" if vec else "amx",
        )
        for index, (bandwidth, flops, memory, vec) in enumerate(hosts_of)
    ]
    try:
        two = plan_disaggregated(ask(model(), workload=LONG), hosts)
    except PlanError:
        return
    if two is None:
        return
    peers = [{stage.peer for stage in cast.plan.stages} for cast in (two.prefill, two.decode)]
    assert not peers[0] & peers[1]
    layouts = {one.peer: one.devices[0].kv_layout for one in hosts}
    assert len({layouts[peer] for peer in peers[0] | peers[1]}) == 1
    for cast, others in zip((two.prefill, two.decode), reversed(peers), strict=True):
        able = {one.peer for one in cast.candidates}
        assert {stage.peer for stage in cast.plan.stages} <= able
        assert not able & others
    assert not {one.peer for one in two.prefill.candidates} & {one.peer for one in two.decode.candidates}
    for cast in (two.prefill, two.decode):
        assert cast.plan.engine == CPU
