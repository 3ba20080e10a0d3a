"""Writers of the embedded block store killed at any moment, and many times its quota written."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.disk import open_disk_store

KILLS = 100
AMPLE = 1 << 30
FULL = os.environ.get("EDGELLM_FULL_TESTS")
"""Set: ten gigabytes are written in a quota of two, which takes the disk of CI a while."""


async def _write_for_ever(directory: Path, seed: int, acknowledge: Callable[[bytes], object]) -> None:
    random_ = random.Random(seed)
    async with open_disk_store(directory, AMPLE) as store:
        while True:
            cids = await store.put([random_.randbytes(random_.randrange(1, 40_000)) for _ in range(4)])
            acknowledge(b"".join(cid.digest for cid in cids))


def _fork_writer(directory: Path, seed: int) -> tuple[int, int]:
    """A process of its own, and where it says what its puts have returned. Forked: an interpreter takes longer than a test."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        trio.run(_write_for_ever, directory, seed, lambda digests: os.write(writing, digests))
    finally:
        os._exit(1)


def _read_all(descriptor: int) -> set[bytes]:
    with os.fdopen(descriptor, "rb") as said:
        whole = said.read()
    assert len(whole) % 32 == 0
    return {whole[start : start + 32] for start in range(0, len(whole), 32)}


def _check(directory: Path, acknowledged: set[bytes]) -> None:
    files = {bytes.fromhex(path.parent.name + path.name): path for path in directory.glob("??/*")}
    for digest, path in files.items():
        assert Cid(digest).matches(path.read_bytes())
    assert acknowledged <= files.keys()


def test_killed_a_hundred_times_while_writing(tmp_path: Path) -> None:
    acknowledged: set[bytes] = set()
    moment = random.Random(1)
    interrupted = 0
    for turn in range(KILLS):
        directory = tmp_path / str(turn // 10)
        if turn % 10 == 0:
            acknowledged = set()
        child, said = _fork_writer(directory, turn)
        try:
            # Some are killed while they open the store, most while they write.
            if turn % 10:
                assert select.select([said], [], [], 30)[0], "the writer wrote nothing"
            time.sleep(moment.uniform(0, 0.05))
        finally:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself"
        acknowledged |= _read_all(said)
        left = [path for path in (directory / "writing").glob("*/*") if path.name != "alive"]
        interrupted += bool(left)
        _check(directory, acknowledged)

        async def check_open(
            directory: Path = directory, expected: frozenset[bytes] = frozenset(acknowledged)
        ) -> None:
            async with open_disk_store(directory, AMPLE) as store:
                entries = await store.entries()
                assert expected <= {entry.cid.digest for entry in entries}
                stat = await store.stat()
                assert stat.blocks == len(entries) == len(list(directory.glob("??/*")))
                for entry in entries[-8:]:
                    assert len(await store.get(entry.cid)) == entry.size_bytes
            assert list((directory / "writing").iterdir()) == []

        trio.run(check_open)
    assert interrupted > KILLS // 20, "too few were killed in the middle of a put"


@pytest.mark.timeout(900)
async def test_five_times_the_quota_goes_through(tmp_path: Path) -> None:
    """10 GB in a quota of 2 GB where EDGELLM_FULL_TESTS is set, else a hundredth of both."""
    scale = 1 if FULL else 100
    quota_bytes, total_bytes, size = 2 * 10**9 // scale, 10 * 10**9 // scale, 1 << 20
    written = 0
    async with open_disk_store(tmp_path, quota_bytes) as store:
        first = await store.put([random.Random(-1).randbytes(size)])
        await store.pin(first[0])
        number = 0
        while written < total_bytes:
            blocks = [random.Random(number * 8 + each).randbytes(size) for each in range(8)]
            cids = await store.put(blocks)
            number, written = number + 1, written + 8 * size
            assert (await store.stat()).used_bytes <= quota_bytes
            assert await store.get(cids[-1]) == blocks[-1]
        assert await store.has(first[0])
        stat = await store.stat()
    files = list(tmp_path.glob("??/*"))
    on_disk = sum(path.stat().st_size for path in files)
    assert quota_bytes - 8 * size <= on_disk == stat.used_bytes <= quota_bytes
    for path in files:
        assert Cid(bytes.fromhex(path.parent.name + path.name)).matches(path.read_bytes())
