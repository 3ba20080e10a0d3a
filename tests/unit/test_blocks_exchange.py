"""Blocks between nodes on a network in memory: from good holders, and from those that are slow, dead or lying."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.disk import DiskStore, open_disk_store
from edgellm.blocks.exchange import MAX_CIDS, PROTOCOL, BlockExchange, serve_blocks
from edgellm.blocks.link import Link
from edgellm.errors import BlockMissing, NetworkError
from edgellm.p2p.network import PeerAddress, Stream
from edgellm.testing.memory_network import MemoryHub, open_hub

BLOCKS = [bytes([number % 256]) * (1000 + number) for number in range(20)]
CIDS = [Cid.of(block) for block in BLOCKS]


def at(peer: str) -> PeerAddress:
    return PeerAddress(peer)


async def filled(store: DiskStore, blocks: list[bytes]) -> None:
    await store.put(blocks)


async def lying(hub: MemoryHub, answer: bytes, *, then_wait: bool = False) -> PeerAddress:
    """A holder that says `answer` to every question."""
    network = hub.join()

    async def serve(stream: Stream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        if then_wait:
            await trio.sleep_forever()

    network.serve(PROTOCOL, serve)
    return at(network.peer)


async def test_blocks_come_in_order_and_the_way_is_measured(tmp_path: Path) -> None:
    big = [bytes([number]) * (1 << 20) for number in range(3)]
    async with open_hub() as hub, open_disk_store(tmp_path, 1 << 30) as store:
        await filled(store, BLOCKS + big)
        alice, bob = hub.join(), hub.join()
        serve_blocks(alice, store)
        exchange = BlockExchange(bob)
        assert exchange.link(alice.peer) == Link()
        wanted = [CIDS[5], CIDS[1], CIDS[5]]
        assert await exchange.fetch(wanted, [at(alice.peer)], timeout_s=5) == [
            BLOCKS[5],
            BLOCKS[1],
            BLOCKS[5],
        ]
        assert exchange.link(alice.peer).throughput_bytes_s == 0, "a few bytes say nothing of it"
        assert await exchange.fetch(list(map(Cid.of, big)), [at(alice.peer)], timeout_s=5) == big
        assert exchange.link(alice.peer).throughput_bytes_s > 1e6


async def test_more_than_one_question(tmp_path: Path) -> None:
    many = [struct.pack("!I", number) for number in range(MAX_CIDS + 5)]
    async with open_hub() as hub, open_disk_store(tmp_path, 1 << 30) as store:
        await filled(store, many)
        alice, bob = hub.join(), hub.join()
        serve_blocks(alice, store)
        assert await BlockExchange(bob).fetch(list(map(Cid.of, many)), [at(alice.peer)], timeout_s=10) == many


async def test_what_one_does_not_have_the_next_one_gives(tmp_path: Path) -> None:
    async with (
        open_hub() as hub,
        open_disk_store(tmp_path / "a", 1 << 30) as some,
        open_disk_store(tmp_path / "b", 1 << 30) as others,
    ):
        await filled(some, BLOCKS[:10])
        await filled(others, BLOCKS[10:])
        alice, bob, carol = hub.join(), hub.join(), hub.join()
        serve_blocks(alice, some)
        serve_blocks(bob, others)
        exchange = BlockExchange(carol)
        holders = [at("nobody"), at(alice.peer), at(bob.peer)]
        assert await exchange.fetch(CIDS, holders, timeout_s=5) == BLOCKS
        with pytest.raises(BlockMissing, match="10 of 20"):
            await exchange.fetch(CIDS, [at(alice.peer)], timeout_s=5)
        with pytest.raises(BlockMissing, match="0 holders"):
            await exchange.fetch(CIDS[:1], [], timeout_s=5)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (struct.pack("!I", 5) + b"other", "something else"),
        (struct.pack("!I", 0xFFFFFFF0), "4294967280 bytes"),
        (struct.pack("!I", 1000) + b"half", "in the middle"),
        (b"", "in the middle"),
    ],
    ids=["another block", "too long", "cut", "nothing"],
)
async def test_a_lying_holder_is_left_for_an_honest_one(tmp_path: Path, answer: bytes, said: str) -> None:
    async with open_hub() as hub, open_disk_store(tmp_path, 1 << 30) as store:
        await filled(store, BLOCKS)
        alice, bob = hub.join(), hub.join()
        serve_blocks(alice, store)
        liar = await lying(hub, answer)
        exchange = BlockExchange(bob)
        assert await exchange.fetch(CIDS, [liar, at(alice.peer)], timeout_s=5) == BLOCKS
        with pytest.raises(BlockMissing, match=said):
            await exchange.fetch(CIDS, [liar], timeout_s=5)


async def test_a_holder_that_stops_costs_the_time_that_was_given(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_hub() as hub:
        frozen = await lying(hub, struct.pack("!I", 1000) + bytes(100), then_wait=True)
        exchange = BlockExchange(hub.join())
        begun = trio.current_time()
        with pytest.raises(BlockMissing, match=r"within 2.0 s"):
            await exchange.fetch(CIDS, [frozen], timeout_s=2)
        assert trio.current_time() - begun == pytest.approx(2, abs=0.5)


@pytest.mark.parametrize("question", [b"\0\0", b"\xff\xff", b"\0\2" + bytes(40)])
async def test_a_question_that_is_none_ends_its_stream_alone(tmp_path: Path, question: bytes) -> None:
    async with open_hub() as hub, open_disk_store(tmp_path, 1 << 30) as store:
        await filled(store, BLOCKS)
        alice, bob = hub.join(), hub.join()
        serve_blocks(alice, store)
        stream = await bob.open_stream(alice.peer, PROTOCOL)
        await stream.send_all(question)
        await stream.aclose()
        with trio.fail_after(10):
            with contextlib.suppress(NetworkError):
                assert await stream.receive_some() == b""
        assert await BlockExchange(bob).fetch(CIDS, [at(alice.peer)], timeout_s=5) == BLOCKS


async def test_a_way_that_becomes_slower_is_believed_at_once() -> None:
    async with open_hub() as hub:
        exchange = BlockExchange(hub.join())
        for seconds, expected in ((0.1, 1e8), (1.0, 1e7), (0.1, 5.5e7)):
            exchange._learn("alice", 0.01, 10**7, seconds)
            assert exchange.link("alice").throughput_bytes_s == pytest.approx(expected)
