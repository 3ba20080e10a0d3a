"""A cluster of one rank reads what others wrote, and what can be wrong with the node's service meanwhile."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from edgellm_vllm.kv.node import SILENCE_S
from edgellm_vllm.kv.settings import CHUNK_TOKENS

from edgellm.kv.region import Region
from edgellm.wire import backend_pb2 as pb
from tests.integration.block_service import Service
from tests.integration.kv_answers import Written, ask, kill_server, load, nearly_says
from tests.integration.kv_model import prompt
from tests.integration.vllm_cluster import Cluster
from tests.integration.vllm_kv.conftest import (
    CHUNKS,
    FETCH_S,
    FIND_S,
    LAYERS,
    OF_SHARDS,
    PROMPT_TOKENS,
    WHOLE_CHUNKS,
    Clusters,
)

pytestmark = pytest.mark.root

CHUNK = CHUNK_TOKENS
# A prompt is computed in well under this on two shared cores.
COMPUTE_S = 10.0


def test_two_stages_pieces_serve_one_rank_bit_by_bit(
    one_rank: Cluster, written: dict[int, Written], service: Service
) -> None:
    answer = ask(one_rank, prompt(0, PROMPT_TOKENS))
    assert answer.cached_tokens == WHOLE_CHUNKS
    assert answer.says(written[0].from_cache)
    pieces = 2 * CHUNKS
    assert service.blocks.outcomes(pieces) == {"used"}
    assert [report.tokens for report in service.blocks.reports] == [CHUNK] * pieces


def test_two_stages_pieces_serve_two_tensor_parallel_ranks(clusters: Clusters) -> None:
    assert clusters.shards_on_stages_pieces.cached_tokens == WHOLE_CHUNKS
    nearly_says(clusters.shards_on_stages_pieces, clusters.written[0].from_cache)


def test_tensor_parallel_ranks_pieces_serve_one_rank(one_rank: Cluster, written: dict[int, Written]) -> None:
    answer = ask(one_rank, prompt(OF_SHARDS, PROMPT_TOKENS))
    assert answer.cached_tokens == WHOLE_CHUNKS
    nearly_says(answer, written[OF_SHARDS].from_cache)


def test_what_is_not_shared_in_whole_chunks_is_computed(
    one_rank: Cluster, written: dict[int, Written]
) -> None:
    answer = ask(one_rank, prompt(1, PROMPT_TOKENS)[: CHUNK - 1])
    assert answer.cached_tokens == 0


def test_the_generated_tokens_are_shared_as_well(one_rank: Cluster, service: Service) -> None:
    before = service.blocks.stored
    ask(one_rank, prompt(2000, CHUNK - 8), answer_tokens=24)
    service.blocks.wait_for_pieces(before + 1)


def test_a_chunk_that_is_gone_ends_what_is_reused(
    one_rank: Cluster, written: dict[int, Written], service: Service
) -> None:
    asked: list[Region] = []

    def gone(name: bytes, region: Region, content: bytes) -> bytes:
        asked.append(region)
        return content if len(asked) <= 4 else b""

    service.blocks.spoil = gone
    answer = ask(one_rank, prompt(2, PROMPT_TOKENS))
    assert answer.cached_tokens < WHOLE_CHUNKS
    assert answer.cached_tokens % CHUNK == 0
    assert answer.tokens[0] == written[2].computed.tokens[0]
    assert "wrong size" in service.blocks.outcomes(1)


def flipped(name: bytes, region: Region, content: bytes) -> bytes:
    return content[:4000] + bytes([content[4000] ^ 1]) + content[4001:]


def shortened(name: bytes, region: Region, content: bytes) -> bytes:
    return content[: len(content) // 2]


def lengthened(name: bytes, region: Region, content: bytes) -> bytes:
    return content + content


@pytest.mark.parametrize(
    ("seed", "spoil", "outcome"),
    [
        (3, flipped, "not authentic"),
        (4, shortened, "wrong size"),
        (5, lengthened, "wrong size"),
    ],
)
def test_spoiled_pieces_are_misses(
    one_rank: Cluster, written: dict[int, Written], service: Service, seed: int, spoil: object, outcome: str
) -> None:
    service.blocks.spoil = spoil  # type: ignore[assignment]
    answer = ask(one_rank, prompt(seed, PROMPT_TOKENS))
    assert answer.cached_tokens == 0
    assert answer.says(written[seed].computed)
    assert service.blocks.outcomes(1) == {outcome}


def test_another_chunk_under_a_right_name_is_a_miss(
    one_rank: Cluster, written: dict[int, Written], service: Service
) -> None:
    """A poisoned index: each name leads to a valid piece of the same scope, region and size."""

    def swapped(name: bytes, region: Region, content: bytes) -> bytes:
        return next(
            pieces[region]
            for other, pieces in service.blocks.pieces.items()
            if other != name and region in pieces
        )

    service.blocks.spoil = swapped
    answer = ask(one_rank, prompt(6, PROMPT_TOKENS))
    assert answer.cached_tokens == 0
    assert answer.says(written[6].computed)
    assert service.blocks.outcomes(1) == {"not authentic"}


def test_another_region_under_a_right_name_is_a_miss(
    one_rank: Cluster, written: dict[int, Written], service: Service
) -> None:
    """Layers 0 to 2 in place of 2 to 6: TP read as PP, and two servers' ranks under one number, come to this."""
    names = set(service.blocks.pieces)
    exchanged = {name: dict(service.blocks.pieces[name]) for name in names}
    for pieces in service.blocks.pieces.values():
        regions = list(pieces)
        contents = [pieces[region] for region in regions]
        for region, content in zip(regions, contents[1:] + contents[:1], strict=True):
            pieces[region] = content
    try:
        answer = ask(one_rank, prompt(7, PROMPT_TOKENS))
    finally:
        service.blocks.pieces.update(exchanged)
    assert answer.cached_tokens == 0
    assert answer.says(written[7].computed)
    assert "used" not in service.blocks.outcomes(1)


def test_a_fetch_that_hangs_costs_its_deadline(
    one_rank: Cluster, written: dict[int, Written], service: Service
) -> None:
    service.blocks.hang.add("Fetch")
    answer = ask(one_rank, prompt(8, PROMPT_TOKENS))
    assert answer.cached_tokens == 0
    assert answer.says(written[8].computed)
    assert answer.seconds < FETCH_S + COMPUTE_S


def test_finds_that_never_return_cost_their_deadline_twelve_at_once(
    one_rank: Cluster, written: dict[int, Written], service: Service
) -> None:
    service.blocks.hang.add("Find")
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda seed: ask(one_rank, prompt(seed, PROMPT_TOKENS)), range(9, 21)))
    assert service.blocks.count("Find") > 1
    for seed, each in zip(range(9, 21), answers, strict=True):
        assert each.cached_tokens == 0
        # Computed together with others, so equal up to late bits.
        assert each.tokens[0] == written[seed].computed.tokens[0]
        assert each.seconds < 2 * FIND_S + COMPUTE_S
    # For a while the silent node is not asked, so that it costs nothing.
    answer = ask(one_rank, prompt(21, PROMPT_TOKENS))
    assert answer.says(written[21].computed)
    assert answer.seconds < FIND_S
    service.blocks.hang.clear()
    time.sleep(SILENCE_S)
    again = ask(one_rank, prompt(22, PROMPT_TOKENS))
    assert again.cached_tokens == WHOLE_CHUNKS
    assert again.says(written[22].from_cache)


def test_without_its_server_the_engine_answers_and_a_new_load_shares_nothing(
    one_rank: Cluster, written: dict[int, Written]
) -> None:
    kill_server(one_rank, 1)
    answer = ask(one_rank, prompt(23, PROMPT_TOKENS))
    assert answer.cached_tokens == 0
    assert answer.says(written[23].computed)
    assert answer.seconds < 30
    assert ask(one_rank, prompt(3000, PROMPT_TOKENS)).seconds < COMPUTE_S
    one_rank.stub.Unload(pb.UnloadRequest(), timeout=60)
    events = load(one_rank, 1, (0, LAYERS))
    assert not events[-1].loaded.shares_kv
    assert any(event.phase.detail.startswith("off: no LMCache server answers") for event in events)
    assert ask(one_rank, prompt(23, PROMPT_TOKENS)).says(written[23].computed)
