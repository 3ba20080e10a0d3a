"""What every block store promises, with each of them: the embedded one, and js-ipfs behind the RPC of Kubo."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.disk import open_disk_store
from edgellm.blocks.kubo import KuboLimits, open_kubo_store
from edgellm.blocks.store import MAX_BLOCK_BYTES, BlockStore
from edgellm.errors import BlockMissing, UsageError
from tests.integration.jsipfs import JsIpfs, jsipfs_daemon

_LIMITS = KuboLimits(lookup_s=0.5, call_s=20.0)
_MISSING_S = 3.0
_HELLO = b"hello world"
_HELLO_CID = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
"""What js-ipfs answers to block/put of these bytes."""

Opened = Callable[[Path], AbstractAsyncContextManager[BlockStore]]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JsIpfs]:
    with jsipfs_daemon(tmp_path_factory.mktemp("jsipfs") / "repository") as daemon:
        yield daemon


@pytest.fixture(params=["disk", "kubo"])
def opened(request: pytest.FixtureRequest) -> Opened:
    """Opens the store; twice with one directory gives the same one again."""
    if request.param == "disk":
        return lambda directory: open_disk_store(directory, quota_bytes=1 << 30)
    address = request.getfixturevalue("daemon").address
    return lambda directory: open_kubo_store(address, directory, limits=_LIMITS)


@pytest.fixture
async def store(opened: Opened, tmp_path: Path) -> AsyncIterator[BlockStore]:
    async with opened(tmp_path / "store") as store:
        yield store


async def test_blocks_have_the_names_that_ipfs_gives_them(store: BlockStore) -> None:
    (cid,) = await store.put([_HELLO])
    assert str(cid) == _HELLO_CID
    assert await store.get(Cid.parse(_HELLO_CID)) == _HELLO


@pytest.mark.parametrize("size_bytes", [0, 1, 65_536, MAX_BLOCK_BYTES - 1, MAX_BLOCK_BYTES])
async def test_what_was_put_is_got(store: BlockStore, size_bytes: int) -> None:
    block = os.urandom(size_bytes)
    assert await store.put([block]) == (Cid.of(block),)
    assert await store.has(Cid.of(block))
    assert await store.get(Cid.of(block)) == block


async def test_cids_come_in_the_order_of_the_blocks(store: BlockStore) -> None:
    blocks = [os.urandom(20_000 - 900 * number) for number in range(20)]
    blocks.append(blocks[0])
    assert await store.put(blocks) == tuple(Cid.of(block) for block in blocks)
    assert await store.put([]) == ()


async def test_a_block_that_is_too_large_is_refused_with_its_batch(store: BlockStore) -> None:
    good = os.urandom(100)
    with pytest.raises(UsageError, match=str(MAX_BLOCK_BYTES)):
        await store.put([good, bytes(MAX_BLOCK_BYTES + 1)])
    assert not await store.has(Cid.of(good))


async def test_a_missing_block_is_missed_soon(store: BlockStore) -> None:
    missing = Cid.of(os.urandom(32))
    with trio.fail_after(_MISSING_S):
        assert not await store.has(missing)
    for call in (store.get, store.pin):
        with trio.fail_after(_MISSING_S), pytest.raises(BlockMissing, match=str(missing)):
            await call(missing)
    await store.unpin(missing)


async def test_gc_removes_all_but_what_is_pinned(store: BlockStore) -> None:
    pinned, loose = os.urandom(3_000), os.urandom(5_000)
    cids = await store.put([pinned, loose])
    await store.pin(cids[0])
    await store.pin(cids[0])
    assert await store.gc() == 5_000
    assert await store.get(cids[0]) == pinned
    with pytest.raises(BlockMissing):
        await store.get(cids[1])

    await store.unpin(cids[0])
    await store.unpin(cids[0])
    assert await store.gc() == 3_000
    assert not await store.has(cids[0])
    assert await store.gc() == 0


async def test_a_removed_block_can_be_put_again(store: BlockStore) -> None:
    block = os.urandom(1_000)
    (cid,) = await store.put([block])
    await store.gc()
    await store.put([block])
    assert await store.get(cid) == block


async def test_stat_counts_blocks_once(store: BlockStore) -> None:
    first, second = os.urandom(1_000), os.urandom(500)
    cids = await store.put([first, second])
    await store.put([first])
    await store.pin(cids[1])
    stat = await store.stat()
    assert (stat.blocks, stat.used_bytes, stat.pinned_bytes) == (2, 1_500, 500)
    await store.gc()
    stat = await store.stat()
    assert (stat.blocks, stat.used_bytes, stat.pinned_bytes) == (1, 500, 500)
    await store.unpin(cids[1])
    assert (await store.stat()).pinned_bytes == 0


async def test_blocks_and_pins_outlive_the_process_that_put_them(opened: Opened, tmp_path: Path) -> None:
    pinned, loose = os.urandom(700), os.urandom(900)
    async with opened(tmp_path) as store:
        cids = await store.put([pinned, loose])
        await store.pin(cids[0])
    async with opened(tmp_path) as store:
        assert await store.get(cids[1]) == loose
        assert (await store.stat()).pinned_bytes == 700
        assert await store.gc() == 900
        assert await store.get(cids[0]) == pinned


async def test_a_thousand_small_gets_at_once(store: BlockStore) -> None:
    blocks = [os.urandom(1_000) for _ in range(1_000)]
    cids = await store.put(blocks)
    right = 0

    async def get(number: int) -> None:
        nonlocal right
        block = await store.get(cids[number])
        right += block == blocks[number]

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(1_000):
                nursery.start_soon(get, number)
    assert right == 1_000


async def test_the_same_block_put_and_got_at_once(store: BlockStore) -> None:
    block = os.urandom(100_000)

    async def put_and_get() -> None:
        (cid,) = await store.put([block])
        assert await store.get(cid) == block

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(put_and_get)
    assert (await store.stat()).blocks == 1


async def test_who_gives_up_leaves_the_store_usable(store: BlockStore) -> None:
    blocks = [os.urandom(200_000) for _ in range(40)]
    with trio.move_on_after(0.05):
        await store.put(blocks)
    assert await store.put(blocks) == tuple(Cid.of(block) for block in blocks)
    assert await store.get(Cid.of(blocks[-1])) == blocks[-1]


@asynccontextmanager
async def _both(directory: Path, address: str) -> AsyncIterator[tuple[BlockStore, BlockStore]]:
    async with (
        open_disk_store(directory / "disk", quota_bytes=1 << 30) as disk,
        open_kubo_store(address, directory / "kubo", limits=_LIMITS) as kubo,
    ):
        yield disk, kubo


async def test_all_stores_name_blocks_alike(daemon: JsIpfs, tmp_path: Path) -> None:
    blocks = [os.urandom(size_bytes) for size_bytes in (0, 1, 1_000, 262_144, MAX_BLOCK_BYTES)]
    async with _both(tmp_path, daemon.address) as (disk, kubo):
        assert await disk.put(blocks) == await kubo.put(blocks)
