"""The records a node knows: kept across processes, bounded, and never in the way."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from edgellm.blocks.cid import Cid
from edgellm.kv.index import MAX_HOLDERS_OF_A_PIECE, SWEEP_EVERY, IndexStat, RecordIndex, open_index
from edgellm.kv.records import Record
from edgellm.kv.region import Region
from edgellm.p2p.network import PeerAddress

SCOPE = b"s" * 32
FRONT, BACK = Region(0, 4, 0, 4), Region(4, 8, 0, 4)


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


def record(number: int = 1, *, holder: str = "alice", region: Region = FRONT, scope: bytes = SCOPE) -> Record:
    cids = (Cid.of(b"%d" % number), Cid.of(holder.encode()))
    return Record(scope, name(number), region, cids, (1 << 20) + number, holder, 1000.0)


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def index(tmp_path: Path, clock: Clock) -> Iterator[RecordIndex]:
    with open_index(tmp_path / "records", now=clock) as opened:
        yield opened


async def test_records_are_found_by_scope_and_name(index: RecordIndex) -> None:
    put = [record(1), record(1, region=BACK), record(2, holder="bob"), record(3, scope=b"t" * 32)]
    assert await index.put(put) == 4
    found = await index.find(SCOPE, [name(1), name(2), name(3), name(4)])
    assert {key: set(records) for key, records in found.items()} == {
        name(1): {put[0], put[1]},
        name(2): {put[2]},
    }
    assert await index.find(SCOPE, [name(1), name(2)], holder="bob") == {name(2): (put[2],)}
    assert await index.stat("alice") == IndexStat(records=4, own_records=3, scopes=2, holders=0)


async def test_more_names_than_fit_into_one_query(index: RecordIndex) -> None:
    await index.put([record(number) for number in range(1, 700)])
    assert len(await index.find(SCOPE, [name(number) for number in range(1000)])) == 699


async def test_another_process_sees_what_one_kept(tmp_path: Path, clock: Clock) -> None:
    with (
        open_index(tmp_path / "records", now=clock) as first,
        open_index(tmp_path / "records", now=clock) as second,
    ):
        await first.put([record(1)])
        assert await second.find(SCOPE, [name(1)]) == {name(1): (record(1),)}
        await second.put([record(2)])
    with open_index(tmp_path / "records", now=clock) as third:
        assert len(await third.find(SCOPE, [name(1), name(2)])) == 2
    assert (tmp_path / "records").stat().st_mode & 0o777 == 0o600


async def test_a_published_piece_stays_as_it_is_but_for_its_expiry(index: RecordIndex) -> None:
    await index.put([record(1)])
    other = replace(record(1), cids=(Cid.of(b"something else"),), size_bytes=5, expires_at=9000.0)
    assert await index.put([other]) == 0
    assert await index.find(SCOPE, [name(1)]) == {name(1): (record(1),)}
    assert await index.put([replace(record(1), expires_at=5000.0)]) == 0
    assert (await index.find(SCOPE, [name(1)]))[name(1)][0].expires_at == 5000.0


async def test_only_so_many_holders_of_one_piece(index: RecordIndex) -> None:
    holders = [record(1, holder=f"peer {number}") for number in range(10)]
    assert await index.put(holders) == MAX_HOLDERS_OF_A_PIECE
    await index.forget(holders[0])
    assert await index.put(holders) == 1


async def test_what_expired_is_not_found_and_goes(index: RecordIndex, clock: Clock) -> None:
    await index.put([record(1), replace(record(2), expires_at=99.0)])
    assert (await index.stat()).records == 1
    clock.time = 1000.0
    assert await index.find(SCOPE, [name(1)]) == {}
    await index.put([replace(record(number), expires_at=5000.0) for number in range(2, SWEEP_EVERY + 3)])
    assert (await index.stat()).records == SWEEP_EVERY + 1


async def test_over_the_limit_what_was_not_used_for_longest_goes(tmp_path: Path, clock: Clock) -> None:
    with open_index(tmp_path / "records", max_records=300, now=clock) as index:
        await index.put([record(number) for number in range(300)])
        clock.time += 100
        used = [name(number) for number in range(0, 300, 2)]
        assert len(await index.find(SCOPE, used)) == 150
        clock.time += 100
        await index.put([record(number) for number in range(300, 400)])
        await index.put([record(number) for number in range(400, 400 + SWEEP_EVERY)])
        stat = await index.stat()
        assert stat.records <= 300 + SWEEP_EVERY
        assert len(await index.find(SCOPE, [name(399 + SWEEP_EVERY)])) == 1
        assert not await index.find(SCOPE, [name(number) for number in range(1, 300, 2)])


async def test_one_record_of_each_holder_the_freshest_first(index: RecordIndex, clock: Clock) -> None:
    await index.put([record(1, holder="alice"), record(2, holder="alice"), record(3, holder="me")])
    clock.time += 100
    await index.put([record(4, holder="bob")])
    clock.time += 100
    await index.find(SCOPE, [name(2)])
    of_each = await index.one_of_each_holder(SCOPE, but="me", limit=5)
    assert [(one.holder, one.name) for one in of_each] == [("alice", name(2)), ("bob", name(4))]
    assert len(await index.one_of_each_holder(SCOPE, but="me", limit=1)) == 1


async def test_addresses_and_figures_are_kept(tmp_path: Path, index: RecordIndex) -> None:
    await index.saw(PeerAddress("alice", ("/ip4/10.0.0.1/tcp/1",)))
    await index.saw(PeerAddress("alice", ("/ip4/10.0.0.2/tcp/1",)))
    assert await index.addresses(["alice", "bob"]) == {"alice": ("/ip4/10.0.0.2/tcp/1",)}
    assert await index.addresses([]) == {}
    await index.add_figures({"bytes_in": 5, "seconds_saved": 0.5})
    await index.add_figures({"bytes_in": 2})
    with open_index(tmp_path / "records") as other:
        assert await other.figures() == {"bytes_in": 7, "seconds_saved": 0.5}


async def test_a_file_that_is_no_index_is_replaced(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "records").write_bytes(b"anything else" * 1000)
    with open_index(tmp_path / "records", now=clock) as index:
        assert await index.find(SCOPE, [name(1)]) == {}
        assert await index.put([record(1)]) == 1
        assert len(await index.find(SCOPE, [name(1)])) == 1


async def test_a_place_that_cannot_be_written_is_knowing_nothing(tmp_path: Path) -> None:
    with open_index(tmp_path / "missing" / "records") as index:
        assert await index.put([record(1)]) == 0
        assert await index.find(SCOPE, [name(1)]) == {}
        assert await index.figures() == {}


async def test_a_locked_file_costs_a_moment(tmp_path: Path, clock: Clock) -> None:
    with open_index(tmp_path / "records", now=clock) as index:
        await index.put([record(1)])
        other = sqlite3.connect(tmp_path / "records")
        other.execute("BEGIN EXCLUSIVE")
        assert await index.put([record(2)]) == 0
        other.rollback()
        other.close()
        assert await index.put([record(2)]) == 1


async def test_closing_waits_for_a_call_that_was_cancelled(tmp_path: Path) -> None:
    """SQLite ends the whole process when its connection is closed under a query."""
    begun, let_go = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        begun.set()
        let_go.wait(5)
        connection.execute("SELECT count(*) FROM pieces").fetchone()

    with open_index(tmp_path / "index") as index:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(index._do, work, None)
            await trio.to_thread.run_sync(begun.wait)
            nursery.cancel_scope.cancel()
        threading.Timer(0.2, let_go.set).start()
        ended = time.monotonic()
    assert time.monotonic() - ended > 0.1
    assert await index.stat() == IndexStat(0, 0, 0, 0)
