"""Clusters of three shapes over one block service, and what they wrote there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from edgellm_vllm.kv.settings import CHUNK_TOKENS

from tests.integration.block_service import Service, block_service
from tests.integration.kv_answers import Answer, Written, ask, load, write
from tests.integration.kv_model import make_model, prompt
from tests.integration.vllm_cluster import Cluster, cluster

LAYERS = 6
PROMPT_TOKENS = 600
CHUNKS = PROMPT_TOKENS // CHUNK_TOKENS
WHOLE_CHUNKS = CHUNKS * CHUNK_TOKENS
FIND_S, FETCH_S = 2.0, 4.0
OF_TWO_STAGES = range(24)
OF_ONE_RANK = range(100, 104)
OF_SHARDS = 1000


@dataclass(frozen=True)
class Clusters:
    """Two that go on, and what was said when the pieces were written. Prompts are named by their seeds."""

    two_stages: Cluster
    one_rank: Cluster
    written: dict[int, Written]
    """By the cluster that computed the prompt: `OF_TWO_STAGES`, `OF_ONE_RANK`, and `OF_SHARDS` by tensor-parallel ranks."""
    shards_on_stages_pieces: Answer
    """Of two tensor-parallel ranks, which are gone, to the first prompt, which the two stages had computed."""


@pytest.fixture(scope="package")
def model() -> Iterator[Path]:
    # Not in /tmp, of which members have their own.
    with tempfile.TemporaryDirectory(prefix="edgellm-kv-", dir="/run") as directory:
        yield make_model(Path(directory) / "model", layers=LAYERS)


@pytest.fixture(scope="package")
def service() -> Iterator[Service]:
    with block_service(find_timeout_s=FIND_S, fetch_timeout_s=FETCH_S) as running:
        yield running


@pytest.fixture(scope="package")
def clusters(service: Service, model: Path) -> Iterator[Clusters]:
    """Two come up at a time; the third does while the first writes."""

    def up(owner: ExitStack, devices: list[int], tensor_parallel: int, *layers: tuple[int, int]) -> Cluster:
        running = owner.enter_context(cluster(devices, model, kv=service.kv))
        assert load(running, tensor_parallel, *layers)[-1].loaded.shares_kv
        return running

    def written(running: Cluster, seeds: range, pieces: int) -> dict[int, Written]:
        before = service.blocks.stored
        said = {seed: write(running, prompt(seed, PROMPT_TOKENS)) for seed in seeds}
        service.blocks.wait_for_pieces(before + pieces)
        assert all(each.computed.cached_tokens == 0 for each in said.values())
        assert all(each.from_cache.cached_tokens == WHOLE_CHUNKS for each in said.values())
        return said

    with ExitStack() as lasting, ExitStack() as passing, ThreadPoolExecutor(2) as threads:
        coming = threads.submit(up, lasting, [1, 1], 1, (0, 2), (2, LAYERS))
        one_rank = threads.submit(up, lasting, [1], 1, (0, LAYERS))
        shards = threads.submit(up, passing, [2], 2, (0, LAYERS))
        two_stages = coming.result()
        said = written(two_stages, OF_TWO_STAGES, len(OF_TWO_STAGES) * 2 * CHUNKS)
        said |= written(one_rank.result(), OF_ONE_RANK, len(OF_ONE_RANK) * CHUNKS)
        answer = ask(shards.result(), prompt(OF_TWO_STAGES[0], PROMPT_TOKENS))
        said |= written(shards.result(), range(OF_SHARDS, OF_SHARDS + 1), 2 * CHUNKS)
        passing.close()
        yield Clusters(two_stages, one_rank.result(), said, answer)


@pytest.fixture(scope="package")
def two_stages(clusters: Clusters) -> Cluster:
    return clusters.two_stages


@pytest.fixture(scope="package")
def one_rank(clusters: Clusters) -> Cluster:
    return clusters.one_rank


@pytest.fixture(scope="package")
def written(clusters: Clusters) -> dict[int, Written]:
    return clusters.written


@pytest.fixture(autouse=True)
def honest(service: Service) -> Iterator[None]:
    """Each test begins with a service that does nothing wrong and that nobody has asked for anything."""
    service.blocks.begin()
    yield
    service.blocks.hang.clear()
    service.blocks.spoil = None
