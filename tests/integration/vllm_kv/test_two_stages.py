"""KV pieces read by a two_stages: each stage has an LMCache server of its own, and all must agree on what is there."""

from __future__ import annotations

import pytest
from edgellm_vllm.kv.settings import CHUNK_TOKENS

from edgellm.kv.region import Region
from tests.integration.block_service import Service
from tests.integration.kv_answers import Written, ask, kill_server
from tests.integration.kv_model import prompt
from tests.integration.vllm_cluster import Cluster
from tests.integration.vllm_kv.conftest import OF_ONE_RANK, PROMPT_TOKENS, WHOLE_CHUNKS

pytestmark = pytest.mark.root

CHUNK = CHUNK_TOKENS
FIRST, SECOND, THIRD, FOURTH = OF_ONE_RANK


def test_one_ranks_pieces_serve_two_stages_bit_by_bit(
    two_stages: Cluster, written: dict[int, Written]
) -> None:
    answer = ask(two_stages, prompt(FIRST, PROMPT_TOKENS))
    assert answer.cached_tokens == WHOLE_CHUNKS
    assert answer.says(written[FIRST].from_cache)


def test_stages_that_get_different_chunks_use_what_both_have(
    two_stages: Cluster, written: dict[int, Written], service: Service
) -> None:
    fetched: dict[bytes, int] = {}

    def once(name: bytes, region: Region, content: bytes) -> bytes:
        """The third and fourth chunk come for the first that asks, spoiled for the other."""
        fetched[name] = fetched.get(name, 0) + 1
        late = list(fetched).index(name) >= 2
        return b"" if late and fetched[name] > 1 else content

    service.blocks.spoil = once
    answer = ask(two_stages, prompt(SECOND, PROMPT_TOKENS))
    assert answer.cached_tokens % CHUNK == 0
    assert answer.cached_tokens < WHOLE_CHUNKS
    assert answer.tokens[0] == written[SECOND].computed.tokens[0]


def test_without_one_stages_server_the_answer_is_right_and_in_time(
    two_stages: Cluster, written: dict[int, Written]
) -> None:
    kill_server(two_stages, 2)
    answer = ask(two_stages, prompt(THIRD, PROMPT_TOKENS))
    assert answer.cached_tokens == 0
    assert answer.says(written[THIRD].computed)
    assert answer.seconds < 30
    again = ask(two_stages, prompt(FOURTH, PROMPT_TOKENS))
    assert again.says(written[FOURTH].computed)
    assert again.seconds < 10
