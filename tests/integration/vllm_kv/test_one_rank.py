"""KV pieces through the node's block service, with real engines: one cluster computes, another one, all new, answers.

The reference of an answer from pieces is vLLM's own prefix cache at the same boundary: in bfloat16 a prompt computed in one go
may differ from it in the last bits.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from edgellm_vllm.kv.node import SILENCE_S
from edgellm_vllm.kv.settings import CHUNK_TOKENS

from edgellm.kv.region import Region
from edgellm.wire import backend_pb2 as pb
from tests.integration.block_service import Service, block_service
from tests.integration.kv_answers import Answer, Written, ask, kill_server, load, nearly_says, write
from tests.integration.kv_model import make_model, prompt
from tests.integration.vllm_cluster import Cluster, cluster

pytestmark = pytest.mark.root

LAYERS = 6
CHUNK = CHUNK_TOKENS
PROMPT_TOKENS = 600
WHOLE_CHUNKS = PROMPT_TOKENS // CHUNK * CHUNK
FIND_S, FETCH_S = 2.0, 4.0
PROMPTS = 24
# A prompt is computed in well under this on two shared cores.
COMPUTE_S = 10.0


@pytest.fixture(scope="module")
def model() -> Iterator[Path]:
    # Not in /tmp, of which members have their own.
    with tempfile.TemporaryDirectory(prefix="edgellm-kv-", dir="/run") as directory:
        yield make_model(Path(directory) / "model", layers=LAYERS)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with block_service(find_timeout_s=FIND_S, fetch_timeout_s=FETCH_S) as running:
        yield running


@pytest.fixture(scope="module")
def written(service: Service, model: Path) -> list[Written]:
    """By a cluster of two stages, which is gone by now: only what the node's service keeps is left of it."""
    with cluster([1, 1], model, kv=service.kv) as running:
        events = load(running, 1, (0, 2), (2, LAYERS))
        assert events[-1].loaded.shares_kv
        said = [write(running, prompt(seed, PROMPT_TOKENS)) for seed in range(PROMPTS)]
        service.blocks.wait_for_pieces(PROMPTS * 2 * WHOLE_CHUNKS // CHUNK)
    assert all(each.computed.cached_tokens == 0 for each in said)
    assert all(each.from_cache.cached_tokens == WHOLE_CHUNKS for each in said)
    return said


@dataclass(frozen=True)
class Shards:
    """What a cluster with two tensor-parallel ranks did, which is gone, too."""

    of_stages: Answer
    """To the first prompt, which the cluster of two stages had computed."""
    own: Written
    """To a prompt that nobody had computed before."""


@pytest.fixture(scope="module")
def shards(service: Service, written: list[Written], model: Path) -> Shards:
    before = sum(map(len, service.blocks.pieces.values()))
    with cluster([2], model, kv=service.kv) as running:
        load(running, 2, (0, LAYERS))
        of_stages = ask(running, prompt(0, PROMPT_TOKENS))
        own = write(running, prompt(1000, PROMPT_TOKENS))
        service.blocks.wait_for_pieces(before + 2 * WHOLE_CHUNKS // CHUNK)
    return Shards(of_stages, own)


@pytest.fixture(scope="module")
def reader(service: Service, shards: Shards, model: Path) -> Iterator[Cluster]:
    """One rank, new processes, empty caches."""
    with cluster([1], model, kv=service.kv) as running:
        assert load(running, 1, (0, LAYERS))[-1].loaded.shares_kv
        yield running


@pytest.fixture(autouse=True)
def honest(service: Service) -> Iterator[None]:
    """Each test begins with a service that does nothing wrong, and no reports: also none of an answer before."""
    time.sleep(0.8)
    service.blocks.reports.clear()
    yield
    service.blocks.hang.clear()
    service.blocks.spoil = None


def test_two_stages_pieces_serve_one_rank_bit_by_bit(
    reader: Cluster, written: list[Written], service: Service
) -> None:
    answer = ask(reader, prompt(0, PROMPT_TOKENS))
    assert answer.cached_tokens == WHOLE_CHUNKS
    assert answer.says(written[0].from_cache)
    pieces = 2 * WHOLE_CHUNKS // CHUNK
    assert service.blocks.outcomes(pieces) == {"used"}
    assert [report.tokens for report in service.blocks.reports] == [CHUNK] * pieces


def test_two_stages_pieces_serve_two_tensor_parallel_ranks(shards: Shards, written: list[Written]) -> None:
    assert shards.of_stages.cached_tokens == WHOLE_CHUNKS
    nearly_says(shards.of_stages, written[0].from_cache)


def test_tensor_parallel_ranks_pieces_serve_one_rank(reader: Cluster, shards: Shards) -> None:
    answer = ask(reader, prompt(1000, PROMPT_TOKENS))
    assert answer.cached_tokens == WHOLE_CHUNKS
    nearly_says(answer, shards.own.from_cache)


def test_what_is_not_shared_in_whole_chunks_is_computed(reader: Cluster, written: list[Written]) -> None:
    answer = ask(reader, prompt(1, PROMPT_TOKENS)[: CHUNK - 1])
    assert answer.cached_tokens == 0


def test_the_generated_tokens_are_shared_as_well(reader: Cluster, service: Service) -> None:
    before = sum(map(len, service.blocks.pieces.values()))
    ask(reader, prompt(2000, CHUNK - 8), answer_tokens=24)
    service.blocks.wait_for_pieces(before + 1)


def test_a_chunk_that_is_gone_ends_what_is_reused(
    reader: Cluster, written: list[Written], service: Service
) -> None:
    asked: list[Region] = []

    def gone(name: bytes, region: Region, content: bytes) -> bytes:
        asked.append(region)
        return content if len(asked) <= 4 else b""

    service.blocks.spoil = gone
    answer = ask(reader, prompt(2, PROMPT_TOKENS))
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
    reader: Cluster, written: list[Written], service: Service, seed: int, spoil: object, outcome: str
) -> None:
    service.blocks.spoil = spoil  # type: ignore[assignment]
    answer = ask(reader, prompt(seed, PROMPT_TOKENS))
    assert answer.cached_tokens == 0
    assert answer.says(written[seed].computed)
    assert service.blocks.outcomes(1) == {outcome}


def test_another_chunk_under_a_right_name_is_a_miss(
    reader: Cluster, written: list[Written], service: Service
) -> None:
    """A poisoned index: each name leads to a valid piece of the same scope, region and size."""

    def swapped(name: bytes, region: Region, content: bytes) -> bytes:
        return next(
            pieces[region]
            for other, pieces in service.blocks.pieces.items()
            if other != name and region in pieces
        )

    service.blocks.spoil = swapped
    answer = ask(reader, prompt(6, PROMPT_TOKENS))
    assert answer.cached_tokens == 0
    assert answer.says(written[6].computed)
    assert service.blocks.outcomes(1) == {"not authentic"}


def test_another_region_under_a_right_name_is_a_miss(
    reader: Cluster, written: list[Written], service: Service
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
        answer = ask(reader, prompt(7, PROMPT_TOKENS))
    finally:
        service.blocks.pieces.update(exchanged)
    assert answer.cached_tokens == 0
    assert answer.says(written[7].computed)
    assert "used" not in service.blocks.outcomes(1)


def test_a_fetch_that_hangs_costs_its_deadline(
    reader: Cluster, written: list[Written], service: Service
) -> None:
    service.blocks.hang.add("Fetch")
    answer = ask(reader, prompt(8, PROMPT_TOKENS))
    assert answer.cached_tokens == 0
    assert answer.says(written[8].computed)
    assert answer.seconds < FETCH_S + COMPUTE_S


def test_finds_that_never_return_cost_their_deadline_twelve_at_once(
    reader: Cluster, written: list[Written], service: Service
) -> None:
    service.blocks.hang.add("Find")
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda seed: ask(reader, prompt(seed, PROMPT_TOKENS)), range(9, 21)))
    assert service.blocks.count("Find") > 1
    for seed, each in zip(range(9, 21), answers, strict=True):
        assert each.cached_tokens == 0
        # Computed together with others, so equal up to late bits.
        assert each.tokens[0] == written[seed].computed.tokens[0]
        assert each.seconds < 2 * FIND_S + COMPUTE_S
    # For a while the silent node is not asked, so that it costs nothing.
    answer = ask(reader, prompt(21, PROMPT_TOKENS))
    assert answer.says(written[21].computed)
    assert answer.seconds < FIND_S
    service.blocks.hang.clear()
    time.sleep(SILENCE_S)
    again = ask(reader, prompt(22, PROMPT_TOKENS))
    assert again.cached_tokens == WHOLE_CHUNKS
    assert again.says(written[22].from_cache)


def test_without_its_server_the_engine_answers_and_a_new_load_shares_nothing(
    reader: Cluster, written: list[Written]
) -> None:
    kill_server(reader, 1)
    answer = ask(reader, prompt(23, PROMPT_TOKENS))
    assert answer.cached_tokens == 0
    assert answer.says(written[23].computed)
    assert answer.seconds < 30
    assert ask(reader, prompt(3000, PROMPT_TOKENS)).seconds < COMPUTE_S
    reader.stub.Unload(pb.UnloadRequest(), timeout=60)
    events = load(reader, 1, (0, LAYERS))
    assert not events[-1].loaded.shares_kv
    assert any(event.phase.detail.startswith("off: no LMCache server answers") for event in events)
    assert ask(reader, prompt(23, PROMPT_TOKENS)).says(written[23].computed)
