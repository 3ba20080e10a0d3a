"""What a cell takes for its own: pieces of another model, layout, machine, scope or salt are misses, and spoiled ones too."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("edgellm_vllm", reason="the distribution in backends/vllm is not installed")

from edgellm_vllm.kv.node import FoundPiece
from edgellm_vllm.kv.pieces import Chunk, Pieces, RankPieces
from edgellm_vllm.kv.profile import RankProfile, read_profile, write_profile
from edgellm_vllm.kv.settings import CHUNK_TOKENS, KvSettings
from edgellm_vllm.kv.tasks import Task

from edgellm.engine.backend import KvSharing
from edgellm.kv.region import Region, cover

SECRET = "ab" * 32
HEAD_BYTES = 8
WHOLE = Region(0, 4, 0, 2)
CHUNK = Chunk(b"\x01" * 32, "")
FACTS = {
    "dtype": "bfloat16",
    "kv_dtype": "auto/bfloat16",
    "block_tokens": 128,
    "device": "cpu",
    "attention": "CPU_ATTN",
    "instructions": "amx",
    "layout": "LBHNC 4d",
    "engine": "vllm 0.32.0 lmcache 0.5.6",
    "lora": "",
}


class MemoryNode:
    """In place of `NodeBlocks`."""

    def __init__(self) -> None:
        self.pieces: dict[bytes, dict[Region, bytes]] = {}
        self.reports: list[str] = []

    def find(self, names: Sequence[bytes], region: Region, chunk_tokens: int, timeout_s: float) -> list[Any]:
        found: list[Any] = []
        for name in names:
            there = self.pieces.get(name, {})
            if cover(region, there) is None:
                break
            found.append(tuple(FoundPiece(each, len(sealed), "peer") for each, sealed in there.items()))
        return found

    def fetch(
        self, name: bytes, piece: FoundPiece, most_bytes: int, timeout_s: float
    ) -> tuple[bytearray, str]:
        return bytearray(self.pieces[name][piece.region]), piece.holder

    def store(self, name: bytes, region: Region, sealed: bytes) -> bool:
        self.pieces.setdefault(name, {}).setdefault(region, sealed)
        return True

    def report(self, name: bytes, region: Region, holder: str, outcome: str, tokens: int) -> None:
        self.reports.append(outcome)

    def close(self) -> None:
        pass


def profile(region: Region = WHOLE, **facts: object) -> RankProfile:
    return RankProfile(
        local_rank=0,
        local_ranks=1,
        region=region,
        bytes_per_head_token=HEAD_BYTES,
        dtype="bfloat16",
        chunk_tokens=CHUNK_TOKENS,
        facts={**FACTS, **facts},
    )


def rank(
    node: MemoryNode, own: RankProfile | None = None, *, secret: str = SECRET, weights: str = "w"
) -> RankPieces:
    own = profile() if own is None else own
    pieces = Pieces(KvSettings(KvSharing(socket_path="/nowhere", scope_secret=secret, weights=weights)))
    pieces.node.close()
    pieces.node = node  # type: ignore[assignment]
    return RankPieces(pieces, own, weights)


def size_of(region: Region) -> int:
    return region.layers * CHUNK_TOKENS * region.heads * HEAD_BYTES


def values(region: Region) -> bytes:
    """Finite bfloat16 numbers."""
    numbers = random.Random(1)
    return bytes(numbers.randrange(0x40) for _ in range(size_of(region)))


def take(reader: RankPieces, chunk: Chunk = CHUNK) -> bytes | None:
    region = reader.profile.region
    reader.find([chunk], 1.0)
    task: Task[object] = Task(None, time.monotonic() + 5)
    shape = (region.layers, CHUNK_TOKENS, region.heads * HEAD_BYTES // 2)
    loaded = reader.load(chunk, shape, size_of(region), task)
    return None if loaded is None else loaded[0]


def test_what_is_stored_is_what_another_process_loads() -> None:
    node = MemoryNode()
    assert rank(node).store(CHUNK, values(WHOLE)) > size_of(WHOLE)
    assert take(rank(node)) == values(WHOLE)
    assert values(WHOLE)[:64] not in next(iter(next(iter(node.pieces.values())).values()))


@pytest.mark.parametrize(
    "difference",
    [
        {"block_tokens": 64},
        {"instructions": "vec"},
        {"kv_dtype": "fp8/float8_e4m3fn"},
        {"dtype": "float16"},
        {"device": "cuda"},
        {"attention": "FLASH_ATTN"},
        {"layout": "BLHNC 5d"},
        {"engine": "vllm 0.32.1 lmcache 0.5.6"},
        {"lora": "c" * 64},
    ],
)
def test_a_rank_that_differs_in_anything_misses(difference: dict[str, object]) -> None:
    node = MemoryNode()
    rank(node).store(CHUNK, values(WHOLE))
    other = rank(node, profile(**difference))
    assert other.find([CHUNK], 1.0) == 0
    assert take(other) is None


def test_other_weights_scopes_salts_and_prompts_miss() -> None:
    node = MemoryNode()
    rank(node).store(CHUNK, values(WHOLE))
    assert take(rank(node, weights="v")) is None
    assert take(rank(node, secret=secrets.token_hex(32))) is None
    assert take(rank(node), Chunk(CHUNK.hash, "adapter")) is None
    assert take(rank(node), Chunk(b"\x02" * 32, "")) is None
    assert len(node.pieces) == 1


def test_the_same_prompt_in_two_scopes_has_nothing_in_common() -> None:
    node = MemoryNode()
    for secret in ("ab" * 32, "cd" * 32):
        rank(node, secret=secret).store(CHUNK, values(WHOLE))
    first, second = (next(iter(pieces.values())) for pieces in node.pieces.values())
    assert not {first[i : i + 16] for i in range(0, 4096, 16)} & {
        second[i : i + 16] for i in range(0, 4096, 16)
    }


def test_ranks_take_of_other_shapes_what_they_own() -> None:
    node = MemoryNode()
    rank(node).store(CHUNK, values(WHOLE))
    part = Region(1, 3, 1, 2)
    whole = [values(WHOLE)[i : i + HEAD_BYTES] for i in range(0, size_of(WHOLE), HEAD_BYTES)]
    wanted = b"".join(
        whole[(layer * CHUNK_TOKENS + token) * 2 + 1] for layer in (1, 2) for token in range(CHUNK_TOKENS)
    )
    assert take(rank(node, profile(part))) == wanted


def test_keys_apart_from_values_cannot_be_cut() -> None:
    node = MemoryNode()
    rank(node).store(CHUNK, values(WHOLE))
    part = Region(0, 2, 0, 2)
    reader = rank(node, profile(part))
    reader.find([CHUNK], 1.0)
    split = (2, part.layers, CHUNK_TOKENS, part.heads * HEAD_BYTES // 4)
    assert reader.load(CHUNK, split, size_of(part), Task(None, time.monotonic() + 5)) is None


def test_values_that_are_not_finite_are_neither_stored_nor_loaded() -> None:
    node = MemoryNode()
    infinite = values(WHOLE)[:-2] + b"\x80\x7f"
    assert rank(node).store(CHUNK, infinite) == 0
    assert node.pieces == {}
    # A member that means harm seals them all the same.
    liar = rank(node, replace(profile(), dtype="int16"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgellm_vllm.kv.pieces.is_finite", lambda content, dtype: True)
        assert liar.store(CHUNK, infinite) > 0
    assert take(rank(node)) is None
    wait_for(node, "not finite")


def test_pieces_under_each_others_names_do_not_open() -> None:
    node = MemoryNode()
    writer = rank(node)
    other = Chunk(b"\x02" * 32, "")
    writer.store(CHUNK, values(WHOLE))
    writer.store(other, values(WHOLE))
    first, second = node.pieces
    node.pieces[first], node.pieces[second] = node.pieces[second], node.pieces[first]
    assert take(rank(node)) is None
    wait_for(node, "not authentic")


def test_a_chunk_is_sealed_and_sent_once() -> None:
    node = MemoryNode()
    writer = rank(node)
    shape = (WHOLE.layers, CHUNK_TOKENS, WHOLE.heads * HEAD_BYTES // 2)
    assert writer.is_to_be_stored(CHUNK, shape, size_of(WHOLE))
    writer.store(CHUNK, values(WHOLE))
    assert not writer.is_to_be_stored(CHUNK, shape, size_of(WHOLE))
    assert not writer.is_to_be_stored(Chunk(b"\x03" * 32, ""), shape, size_of(WHOLE) - 1)


def test_a_rank_is_known_by_what_it_has_said_of_itself(tmp_path: Path) -> None:
    pieces = Pieces(KvSettings(KvSharing(scope_secret=SECRET, weights="w"), str(tmp_path)))
    assert pieces.of_rank(1, 0) is None
    write_profile(str(tmp_path), profile())
    assert read_profile(str(tmp_path), 0) == profile()
    known = pieces.of_rank(1, 0)
    assert known is not None
    assert known.profile.region == WHOLE
    # LMCache's key says two ranks where this server has one: another geometry, whatever the sizes.
    assert pieces.of_rank(2, 0) is None


def wait_for(node: MemoryNode, outcome: str) -> None:
    deadline = time.monotonic() + 5
    while outcome not in node.reports:
        assert time.monotonic() < deadline, node.reports
        time.sleep(0.01)
