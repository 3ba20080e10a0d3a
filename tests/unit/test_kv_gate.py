"""Fetch or recompute: never slower by more than what a new link may cost, whatever the estimates were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.kv.gate import LEAST_SAVING, PROBE_SHARE, Link, worth_fetching

MIB = 1 << 20
TOKENS = 256


def run(chunks: int, size: int = 4 * MIB) -> list[dict[str, int]]:
    return [{"alice": size} for _ in range(chunks)]


def test_a_fast_link_gives_everything() -> None:
    verdict = worth_fetching(run(7), {"alice": Link(100e6, 0.001)}, chunk_tokens=TOKENS, prefill_tok_s=500)
    assert verdict.chunks == 7
    assert verdict.fetch_s < 0.35 < 3 < verdict.compute_s
    assert verdict.fetch_s < verdict.timeout_s < verdict.compute_s


def test_a_slow_link_gives_nothing() -> None:
    verdict = worth_fetching(run(7), {"alice": Link(1e6, 0.05)}, chunk_tokens=TOKENS, prefill_tok_s=500)
    assert verdict.chunks == 0


def test_nothing_to_fetch() -> None:
    assert worth_fetching([], {}, chunk_tokens=TOKENS, prefill_tok_s=500).chunks == 0


def test_what_is_here_costs_nothing() -> None:
    assert worth_fetching([{}, {}, {}], {}, chunk_tokens=TOKENS, prefill_tok_s=500).chunks == 3


def test_the_run_ends_before_a_holder_that_is_too_slow() -> None:
    links = {"alice": Link(100e6, 0.001), "bob": Link(1e6, 0.001)}
    verdict = worth_fetching(
        [*run(3), {"bob": 4 * MIB}, *run(3)], links, chunk_tokens=TOKENS, prefill_tok_s=500
    )
    assert verdict.chunks == 3


def test_an_unknown_holder_is_tried_for_a_moment() -> None:
    verdict = worth_fetching(run(7), {}, chunk_tokens=TOKENS, prefill_tok_s=500)
    assert verdict.chunks == 7
    assert verdict.timeout_s <= PROBE_SHARE * 7 * TOKENS / 500 + 0.001
    mixed = worth_fetching(
        [*run(3), {"bob": MIB}], {"alice": Link(100e6, 0.001)}, chunk_tokens=TOKENS, prefill_tok_s=500
    )
    assert mixed.chunks == 3


def test_holders_send_at_the_same_time() -> None:
    both = [{"alice": 2 * MIB, "bob": 2 * MIB} for _ in range(7)]
    link = Link(20e6, 0.001)
    two = worth_fetching(both, {"alice": link, "bob": link}, chunk_tokens=TOKENS, prefill_tok_s=500)
    one = worth_fetching(run(7), {"alice": link}, chunk_tokens=TOKENS, prefill_tok_s=500)
    assert two.fetch_s < 0.6 * one.fetch_s


@given(
    st.lists(st.integers(1, 64 * MIB), max_size=20),
    st.floats(1e4, 1e10),
    st.floats(0, 2),
    st.floats(1, 1e5),
    st.floats(0.85, 3),
)
def test_a_link_that_is_somewhat_slower_than_measured_costs_at_most_a_twentieth(
    sizes: list[int], throughput: float, rtt: float, prefill: float, really: float
) -> None:
    verdict = worth_fetching(
        [{"alice": size} for size in sizes],
        {"alice": Link(throughput, rtt)},
        chunk_tokens=TOKENS,
        prefill_tok_s=prefill,
    )
    if verdict.chunks == 0:
        return
    compute_s = verdict.chunks * TOKENS / prefill
    assert verdict.compute_s == pytest.approx(compute_s)
    assert verdict.fetch_s <= (1 - LEAST_SAVING) * compute_s * 1.000001
    fetch_s = rtt + sum(sizes[: verdict.chunks]) / throughput
    # Up to 30 % slower than measured still holds the bound.
    if really <= 1.3:
        assert fetch_s * really <= 1.05 * compute_s
