"""The cell's half and the node's half together, without an engine: sealed by one host's cell, opened by another's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio

pytest.importorskip("edgellm_vllm", reason="the distribution in backends/vllm is not installed")

from edgellm_vllm.kv.node import region_to_wire
from edgellm_vllm.kv.pieces import Chunk, Pieces, RankPieces
from edgellm_vllm.kv.settings import KvSettings
from edgellm_vllm.kv.tasks import Task

from edgellm.engine.backend import KvSharing
from edgellm.kv.region import Region
from edgellm.kv.seal import SEAL_BYTES
from edgellm.kv.sharing import FIND_S
from tests.unit.kv_in_memory import some_piece
from tests.unit.test_kv_service import cells
from tests.unit.test_vllm_kv_pieces import CHUNK_TOKENS, SECRET, WHOLE, profile, size_of, values

CHUNKS = [Chunk(bytes([index]) * 32, "") for index in range(1, 4)]
T = TypeVar("T")


async def call(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


def rank(socket: Path, region: Region = WHOLE) -> RankPieces:
    settings = KvSettings(KvSharing(socket_path=str(socket), scope_secret=SECRET, weights="w"))
    return RankPieces(Pieces(settings), profile(region), "w")


def load(reader: RankPieces, chunk: Chunk) -> bytes | None:
    region = reader.profile.region
    task: Task[object] = Task(None, time.monotonic() + 5)
    shape = (region.layers, CHUNK_TOKENS, region.heads * 4)
    loaded = reader.load(chunk, shape, size_of(region), task)
    if loaded is None:
        return None
    reader.report(loaded[1], "used")
    return loaded[0]


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.02)


async def test_a_cell_opens_what_another_hosts_cell_sealed(tmp_path: Path) -> None:
    async with cells(tmp_path) as (asker, [alice, _]):
        writer, reader = rank(tmp_path / "0.blocks.sock"), rank(tmp_path / "1.blocks.sock")
        for chunk in CHUNKS[:2]:
            assert await call(lambda chunk=chunk: writer.store(chunk, values(WHOLE)))  # type: ignore[misc]
        with trio.fail_after(5):
            while await call(lambda: reader.find(CHUNKS, 2.0)) < 2:
                await trio.sleep(0.05)
        assert await call(lambda: load(reader, CHUNKS[0])) == values(WHOLE)
        assert await call(lambda: load(reader, CHUNKS[2])) is None
        [tracked] = asker.tracker._tracked
        await until(lambda: tracked.tokens)
        assert tracked.tokens == {alice.node.peer: CHUNK_TOKENS}
        assert not any(values(WHOLE)[:64] in block for block in alice.node.store.blocks.values())


async def test_a_piece_that_a_hostile_holder_replaced_is_a_miss_and_its_holder_is_avoided(
    tmp_path: Path,
) -> None:
    async with cells(tmp_path) as (asker, [liar, bob]):
        reader = rank(tmp_path / "1.blocks.sock")
        # The right name, size and CIDs; the wrong bytes.
        forged = some_piece(size_of(WHOLE) + SEAL_BYTES)
        assert await liar.store(reader._name(CHUNKS[0]), forged, region_to_wire(WHOLE))
        with trio.fail_after(5):
            while not await call(lambda: reader.find(CHUNKS[:1], 2.0)):
                await trio.sleep(0.02)
        assert await call(lambda: load(reader, CHUNKS[0])) is None
        avoided = bob.node.holdings.distrust.avoided
        await until(lambda: avoided(asker.scope, liar.node.peer, trio.current_time()))
        assert await call(lambda: reader.find(CHUNKS[:1], 2.0)) == 0


async def test_a_tracker_that_hangs_costs_less_than_the_cells_patience(tmp_path: Path) -> None:
    async with cells(tmp_path, 1) as (asker, [alice]):
        reader = rank(tmp_path / "0.blocks.sock")
        alice.node.network._hub.freeze(asker.network.peer)
        begun = time.monotonic()
        assert await call(lambda: reader.find(CHUNKS, 2.0)) == 0
        assert time.monotonic() - begun < FIND_S + 0.1
        assert not reader._pieces.node._ask_again_at
