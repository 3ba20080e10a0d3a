"""The embedded store: what it keeps it keeps whole, within its quota, and for several processes."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.disk import open_disk_store
from edgellm.blocks.store import MAX_BLOCK_BYTES, StoreStat
from edgellm.errors import BlockMissing, BlockStoreFull, EdgeError, UsageError

QUOTA = 1 << 20


def block(number: int, size: int = 1000) -> bytes:
    return random.Random(number).randbytes(size)


def half_written(directory: Path) -> list[Path]:
    return [path for path in (directory / "writing").glob("*/*") if path.name != "alive"]


def test_cids_are_those_of_ipfs() -> None:
    # As py-libp2p and `ipfs block put --cid-codec=raw` name "hello world" and nothing.
    assert str(Cid.of(b"hello world")) == "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
    assert str(Cid.of(b"")) == "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    cid = Cid.of(b"x")
    assert Cid.parse(str(cid)) == Cid.from_bytes(bytes(cid)) == cid
    for wrong in ("", "zb2rhe5P4gXftAwvA4eXQ5HJwsER2owDyS9sKaQRRVQPn93bA", "bafybei", "b!!!", str(cid) + "a"):
        with pytest.raises(UsageError):
            Cid.parse(wrong)


async def test_what_was_put_is_there_for_others_too(tmp_path: Path) -> None:
    async with open_disk_store(tmp_path, QUOTA) as store, open_disk_store(tmp_path, QUOTA) as other:
        blocks = [block(1), b"", block(2, 70_000), block(1)]
        cids = await store.put(blocks)
        assert cids == tuple(map(Cid.of, blocks))
        for cid, content in zip(cids, blocks, strict=True):
            assert await other.has(cid)
            assert await other.get(cid) == content
        assert await other.stat() == StoreStat(3, 71_000, 0, QUOTA)
    async with open_disk_store(tmp_path, QUOTA) as again:
        assert await again.get(cids[2]) == blocks[2]


async def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    async with open_disk_store(tmp_path, QUOTA) as store:
        for ask in (store.get, store.pin):
            with pytest.raises(BlockMissing):
                await ask(Cid.of(b"never"))
        assert not await store.has(Cid.of(b"never"))
        await store.unpin(Cid.of(b"never"))
        with pytest.raises(UsageError, match="at most"):
            await store.put([bytes(MAX_BLOCK_BYTES + 1)])
        assert await store.put([bytes(MAX_BLOCK_BYTES)][:0]) == ()


async def test_the_least_recently_used_go_first_and_pinned_ones_never(tmp_path: Path) -> None:
    async with open_disk_store(tmp_path, 10_000) as store:
        cids = []
        for number in range(10):
            cids += await store.put([block(number)])
        await store.pin(cids[0])
        await store.get(cids[1])
        (new,) = await store.put([block(100)])
        assert [await store.has(cid) for cid in cids] == [True, True, False] + [True] * 7
        assert await store.has(new)
        with pytest.raises(BlockStoreFull, match="pinned"):
            await store.put([block(200, 9500)])
        assert (await store.stat()).used_bytes == 10_000
        assert await store.gc() == 9000
        assert await store.get(cids[0]) == block(0)
        await store.unpin(cids[0])
        assert await store.gc() == 1000
        assert await store.stat() == StoreStat(0, 0, 0, 10_000)


async def test_a_quota_of_nothing_keeps_nothing(tmp_path: Path) -> None:
    async with open_disk_store(tmp_path, 0) as store:
        with pytest.raises(BlockStoreFull):
            await store.put([b"x"])


async def test_ten_times_the_quota_goes_through(tmp_path: Path) -> None:
    async with open_disk_store(tmp_path, QUOTA) as store:
        for turn in range(40):
            await store.put([block(turn * 100 + number, 64_000) for number in range(4)])
            assert (await store.stat()).used_bytes <= QUOTA
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("??/*"))
    assert on_disk <= QUOTA


@pytest.mark.parametrize("damage", [b"", b"something else", None])
async def test_a_damaged_file_is_a_missing_block(tmp_path: Path, damage: bytes | None) -> None:
    async with open_disk_store(tmp_path, QUOTA) as store:
        (cid,) = await store.put([block(1)])
        (path,) = (path for path in tmp_path.glob("??/*"))
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        with pytest.raises(BlockMissing):
            await store.get(cid)
        assert not await store.has(cid)
        assert (await store.stat()).blocks == 0
        await store.put([block(1)])
        assert await store.get(cid) == block(1)


@pytest.mark.parametrize("damage", ["removed", "garbage", "emptied"])
async def test_the_index_is_made_anew_from_the_files(tmp_path: Path, damage: str) -> None:
    async with open_disk_store(tmp_path, QUOTA) as store:
        cids = await store.put([block(1), block(2)])
    index = tmp_path / "ledger.sqlite"
    if damage == "removed":
        index.unlink()
    elif damage == "garbage":
        index.write_bytes(b"no database" * 1000)
    else:
        with sqlite3.connect(index) as database:
            database.execute("DELETE FROM blocks")
    async with open_disk_store(tmp_path, QUOTA) as store:
        assert (await store.stat()).used_bytes == 2000
        assert await store.get(cids[1]) == block(2)


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
async def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], check=True)
    try:
        async with open_disk_store(tmp_path, 1 << 30) as store:
            with pytest.raises(BlockStoreFull, match="disk") as caught:
                for number in range(40):
                    await store.put([block(number, 200_000)])
            assert caught.value.remedy
            assert half_written(tmp_path) == []
            for path in (tmp_path / "blocks").rglob("*"):
                if path.is_file():
                    assert Cid.of(path.read_bytes()).digest.hex() == path.parent.name + path.name
    finally:
        subprocess.run(["umount", tmp_path], check=True)


async def test_a_thousand_small_ones_at_once(tmp_path: Path) -> None:
    async with open_disk_store(tmp_path, QUOTA) as store:
        cids = await store.put([block(number, 100) for number in range(1000)])
        got: dict[Cid, bytes] = {}

        async def get(cid: Cid) -> None:
            got[cid] = await store.get(cid)

        async with trio.open_nursery() as nursery:
            for cid in cids:
                nursery.start_soon(get, cid)
        assert got == {cid: block(number, 100) for number, cid in enumerate(cids)}


async def test_two_processes_write_at_the_same_time_within_one_quota(tmp_path: Path) -> None:
    quota_bytes = 2 << 20
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(quota_bytes), str(number)])
        for number in range(2)
    ]
    assert [await trio.to_thread.run_sync(writer.wait) for writer in writers] == [0, 0]
    async with open_disk_store(tmp_path, None) as store:
        stat = await store.stat()
        entries = await store.entries()
        for entry in entries:
            assert len(await store.get(entry.cid)) == entry.size_bytes
    files = list(tmp_path.glob("??/*"))
    assert stat.blocks == len(files) == len(entries)
    assert stat.used_bytes == sum(path.stat().st_size for path in files) <= stat.quota_bytes == quota_bytes
    assert half_written(tmp_path) == []


WRITER = """
import random, sys, trio
from pathlib import Path
from edgellm.blocks.disk import open_disk_store

async def main():
    shared, own = random.Random(0), random.Random(int(sys.argv[3]) + 1)
    async with open_disk_store(Path(sys.argv[1]), int(sys.argv[2])) as store:
        for _ in range(40):
            blocks = [each.randbytes(20_000) for each in (shared, own, shared, own)]
            cids = await store.put(blocks)
            await store.pin(cids[1])
            assert await store.get(cids[1]) == blocks[1]
            await store.unpin(cids[1])

trio.run(main)
"""


async def test_what_a_killed_writer_left_is_swept_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    async with open_disk_store(tmp_path, QUOTA) as live:
        (place,) = (tmp_path / "writing").iterdir()
        (place / "half").write_bytes(b"on its way")
        dead = tmp_path / "writing" / "dead"
        dead.mkdir()
        (dead / "alive").touch()
        (dead / "half").write_bytes(b"never finished")
        async with open_disk_store(tmp_path, QUOTA):
            assert half_written(tmp_path) == [place / "half"]
        assert not dead.exists()
        (cid,) = await live.put([block(1)])
        assert await live.get(cid) == block(1)


@pytest.mark.parametrize("damage", ["removed", "garbage", "no tables", "all removed"])
async def test_a_store_mends_itself_while_it_is_open(tmp_path: Path, damage: str) -> None:
    directory = tmp_path / "blocks"
    async with open_disk_store(directory, QUOTA) as store, open_disk_store(directory, QUOTA) as other:
        (cid,) = await store.put([block(1)])
        await store.pin(cid)
        ledger = directory / "ledger.sqlite"
        if damage == "removed":
            ledger.unlink()
        elif damage == "garbage":
            for path in directory.glob("ledger.sqlite*"):
                path.write_bytes(b"no database" * 1000)
        elif damage == "no tables":
            with sqlite3.connect(ledger) as database:
                database.execute("DROP TABLE blocks")
        else:
            shutil.rmtree(directory)
        (new,) = await store.put([block(2)])
        assert await other.get(new) == block(2)
        left = 0 if damage == "all removed" else 1000
        for each in (store, other):
            assert await each.stat() == StoreStat(1 + left // 1000, 1000 + left, left, QUOTA)
        assert await other.gc() == 1000


async def test_a_frozen_process_does_not_freeze_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_disk_store(tmp_path, QUOTA) as store:
        (cid,) = await store.put([block(1)])
        monkeypatch.setattr("edgellm.blocks.ledger.Ledger.run.__kwdefaults__", {"wait_s": 0.1})
        with (tmp_path / "lock").open("rb") as frozen:
            fcntl.flock(frozen, fcntl.LOCK_EX)
            with trio.fail_after(5):
                assert await store.get(cid) == block(1)
                with pytest.raises(EdgeError, match="busy"):
                    await store.put([block(2)])
        await store.put([block(2)])
        assert half_written(tmp_path) == []


async def test_a_put_of_what_is_damaged_mends_it_and_keeps_its_pin(tmp_path: Path) -> None:
    async with open_disk_store(tmp_path, QUOTA) as store:
        (cid,) = await store.put([block(1)])
        await store.pin(cid)
        (path,) = tmp_path.glob("??/*")
        path.write_bytes(b"damage")
        await store.put([block(1)])
        assert await store.get(cid) == block(1)
        assert await store.gc() == 0


async def test_without_rights_there_is_one_line_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EdgeError, match="cannot be used") as caught:
        async with open_disk_store(tmp_path / "file", QUOTA):
            pass
    assert "EDGELLM_HOME" in caught.value.remedy
