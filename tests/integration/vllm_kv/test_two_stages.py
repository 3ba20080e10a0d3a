"""KV pieces read by a pipeline: each stage has an LMCache server of its own, and all must agree on what is there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from edgellm_vllm.kv.settings import CHUNK_TOKENS

from edgellm.kv.region import Region
from tests.integration.block_service import Service, block_service
from tests.integration.kv_answers import Written, ask, kill_server, load, write
from tests.integration.kv_model import make_model, prompt
from tests.integration.vllm_cluster import Cluster, cluster

pytestmark = pytest.mark.root

LAYERS = 6
CHUNK = CHUNK_TOKENS
PROMPT_TOKENS = 600
WHOLE_CHUNKS = PROMPT_TOKENS // CHUNK * CHUNK
PROMPTS = 4


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with block_service() as running:
        yield running


@pytest.fixture(scope="module")
def model() -> Iterator[Path]:
    # Not in /tmp, of which members have their own.
    with tempfile.TemporaryDirectory(prefix="edgellm-kv-", dir="/run") as directory:
        yield make_model(Path(directory) / "model", layers=LAYERS)


@pytest.fixture(scope="module")
def written(service: Service, model: Path) -> list[Written]:
    """By one rank, which is gone by now."""
    with cluster([1], model, kv=service.kv) as running:
        load(running, 1, (0, LAYERS))
        said = [write(running, prompt(seed, PROMPT_TOKENS)) for seed in range(PROMPTS)]
        service.blocks.wait_for_pieces(PROMPTS * WHOLE_CHUNKS // CHUNK)
    return said


@pytest.fixture(scope="module")
def pipeline(service: Service, written: list[Written], model: Path) -> Iterator[Cluster]:
    with cluster([1, 1], model, kv=service.kv) as running:
        assert load(running, 1, (0, 4), (4, LAYERS))[-1].loaded.shares_kv
        yield running


def test_one_ranks_pieces_serve_two_stages_bit_by_bit(pipeline: Cluster, written: list[Written]) -> None:
    answer = ask(pipeline, prompt(0, PROMPT_TOKENS))
    assert answer.cached_tokens == WHOLE_CHUNKS
    assert answer.says(written[0].from_cache)


def test_stages_that_get_different_chunks_use_what_both_have(
    pipeline: Cluster, written: list[Written], service: Service
) -> None:
    fetched: dict[bytes, int] = {}

    def once(name: bytes, region: Region, content: bytes) -> bytes:
        """The third and fourth chunk come for the first that asks, spoiled for the other."""
        fetched[name] = fetched.get(name, 0) + 1
        late = list(fetched).index(name) >= 2
        return b"" if late and fetched[name] > 1 else content

    service.blocks.spoil = once
    try:
        answer = ask(pipeline, prompt(1, PROMPT_TOKENS))
    finally:
        service.blocks.spoil = None
    assert answer.cached_tokens % CHUNK == 0
    assert answer.cached_tokens < WHOLE_CHUNKS
    assert answer.tokens[0] == written[1].computed.tokens[0]


def test_without_one_stages_server_the_answer_is_right_and_in_time(
    pipeline: Cluster, written: list[Written]
) -> None:
    kill_server(pipeline, 2)
    answer = ask(pipeline, prompt(2, PROMPT_TOKENS))
    assert answer.cached_tokens == 0
    assert answer.says(written[2].computed)
    assert answer.seconds < 30
    again = ask(pipeline, prompt(3, PROMPT_TOKENS))
    assert again.says(written[3].computed)
    assert again.seconds < 10
