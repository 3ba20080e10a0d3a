"""Bitswap on a network in memory: with another of ours, and with peers that are slow, dead or hostile."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import trio
import trio.testing

from edgellm.blocks.bitswap import MAX_MESSAGE_BYTES, MAX_STREAMS_PER_PEER, PROTOCOL, Bitswap
from edgellm.blocks.cid import Cid
from edgellm.blocks.disk import open_disk_store
from edgellm.blocks.exchange import BlockExchange
from edgellm.errors import BlockMissing, BlocksNotSent, NetworkError
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Network, PeerAddress, Stream
from edgellm.testing.memory_network import open_hub
from edgellm.wire.bitswap_pb2 import BitswapMessage
from tests.unit.kv_in_memory import MemoryStore

BLOCKS = [bytes([number % 256]) * (1000 + number) for number in range(20)]
CIDS = [Cid.of(block) for block in BLOCKS]


async def say(network: Network, to: str, message: BitswapMessage) -> None:
    stream = await network.open_stream(to, PROTOCOL)
    await MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES).send(message)
    await stream.aclose()


def wants(*cids: bytes, have: bool = False, dont_have: bool = True) -> BitswapMessage:
    kind = BitswapMessage.Wantlist.HAVE if have else BitswapMessage.Wantlist.BLOCK
    entries = [
        BitswapMessage.Wantlist.Entry(block=cid, want_type=kind, send_dont_have=dont_have) for cid in cids
    ]
    return BitswapMessage(wantlist=BitswapMessage.Wantlist(entries=entries))


def heard_by(network: Network) -> list[BitswapMessage]:
    """What others say to a peer that is no Bitswap of ours."""
    messages: list[BitswapMessage] = []

    async def listen(stream: Stream) -> None:
        reader = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
        while True:
            messages.append(await reader.receive(BitswapMessage))

    network.serve(PROTOCOL, listen)
    return messages


async def test_blocks_cross(tmp_path: Path) -> None:
    big = [bytes([number]) * (1 << 20) for number in range(5)]
    async with open_hub() as hub, open_disk_store(tmp_path, 1 << 30) as store:
        await store.put(BLOCKS + big)
        alice, bob = hub.join(), hub.join()
        Bitswap(alice, store)
        got: dict[Cid, bytes] = {}
        absent = Cid.of(b"nobody has it")
        await Bitswap(bob, None).fetch(
            [*CIDS, absent, *map(Cid.of, big)], PeerAddress(alice.peer), got.__setitem__
        )
        assert got == {Cid.of(block): block for block in BLOCKS + big}


async def test_nodes_ask_a_holder_that_is_no_node_over_bitswap(tmp_path: Path) -> None:
    async with open_hub() as hub, open_disk_store(tmp_path, 1 << 30) as store:
        await store.put(BLOCKS)
        alice, bob = hub.join(), hub.join()
        Bitswap(alice, store)
        exchange = BlockExchange(bob, Bitswap(bob, None))
        assert await exchange.fetch(CIDS[:3], [PeerAddress(alice.peer)], timeout_s=5) == BLOCKS[:3]
        with pytest.raises(BlockMissing, match="1 of 1") as error:
            await exchange.fetch([Cid.of(b"nobody has it")], [PeerAddress(alice.peer)], timeout_s=5)
        assert not isinstance(error.value, BlocksNotSent)


async def test_questions_get_what_they_ask_for_and_nothing_else(tmp_path: Path) -> None:
    async with open_hub() as hub, open_disk_store(tmp_path, 1 << 30) as store:
        await store.put(BLOCKS)
        alice, bob = hub.join(), hub.join()
        Bitswap(alice, store)
        heard = heard_by(bob)
        absent = bytes(Cid.of(b"nobody has it"))
        version_0 = b"\x12\x20" + CIDS[1].digest
        directory = b"\x01\x70\x12\x20" + CIDS[2].digest
        sha512 = b"\x01\x55\x13\x40" + hashlib.sha512(BLOCKS[0]).digest()
        await say(bob, alice.peer, wants(bytes(CIDS[0]), absent, b"", b"nonsense", sha512, have=True))
        await say(bob, alice.peer, wants(version_0, directory, absent))
        await say(bob, alice.peer, wants(absent, dont_have=False))
        cancel = wants(bytes(CIDS[3]))
        cancel.wantlist.entries[0].cancel = True
        await say(bob, alice.peer, cancel)
        await trio.testing.wait_all_tasks_blocked(0.05)
        presences = {(presence.cid, presence.type) for message in heard for presence in message.presences}
        assert presences == {
            (bytes(CIDS[0]), BitswapMessage.HAVE),
            (absent, BitswapMessage.DONT_HAVE),
            (b"", BitswapMessage.DONT_HAVE),
            (b"nonsense", BitswapMessage.DONT_HAVE),
            (sha512, BitswapMessage.DONT_HAVE),
        }
        blocks = [(block.prefix, block.data) for message in heard for block in message.blocks]
        assert blocks == [(b"\x12\x20", BLOCKS[1]), (b"\x01\x70\x12\x20", BLOCKS[2])]
        assert all(message.HasField("wantlist") for message in heard)


async def test_what_nobody_asked_for_is_dropped(autojump_clock: object) -> None:
    async with open_hub() as hub:
        store = MemoryStore(1 << 30)
        alice, mallory = hub.join(), hub.join()
        bitswap = Bitswap(alice, store)
        got: dict[Cid, bytes] = {}

        async def answer(stream: Stream) -> None:
            await MessageStream(stream).receive(BitswapMessage)
            pushed = BitswapMessage.Block(prefix=Cid.PREFIX, data=b"unasked")
            forged = BitswapMessage.Block(prefix=b"\x01\x55\x13\x20", data=BLOCKS[0])
            huge = BitswapMessage.Block(prefix=Cid.PREFIX, data=bytes((2 << 20) + 1))
            await say(mallory, alice.peer, BitswapMessage(blocks=[pushed, forged, huge]))

        mallory.serve(PROTOCOL, answer)
        await say(
            mallory, alice.peer, BitswapMessage(blocks=[BitswapMessage.Block(prefix=Cid.PREFIX, data=b"x")])
        )
        with pytest.raises(NetworkError, match="sent nothing more"):
            await bitswap.fetch(CIDS[:1], PeerAddress(mallory.peer), got.__setitem__, stall_s=1)
        assert got == {}
        assert (await store.stat()).blocks == 0


async def test_a_silent_holder_is_given_up_and_told_so(autojump_clock: object) -> None:
    async with open_hub() as hub:
        alice, bob = hub.join(), hub.join()
        heard = heard_by(alice)
        with pytest.raises(NetworkError, match="sent nothing more for 2 s"):
            await Bitswap(bob, None).fetch(CIDS[:2], PeerAddress(alice.peer), {}.__setitem__, stall_s=2)
        await trio.sleep(1)
        asked = [[(entry.block, entry.cancel) for entry in message.wantlist.entries] for message in heard]
        both = [bytes(cid) for cid in CIDS[:2]]
        assert asked == [[(cid, False) for cid in both], [(cid, True) for cid in both]]


async def _denial(peer: Network, to: str, cid: Cid) -> None:
    presence = BitswapMessage.Presence(cid=bytes(cid), type=BitswapMessage.DONT_HAVE)
    await say(peer, to, BitswapMessage(presences=[presence]))


async def test_a_denial_counts_only_for_who_denies(autojump_clock: object) -> None:
    async with open_hub() as hub:
        # In memory: a clock that jumps does not wait for a disk.
        store = MemoryStore(1 << 30)
        await store.put(BLOCKS)
        alice, bob, mallory = hub.join(), hub.join(), hub.join()
        bitswap = Bitswap(bob, None)
        hub.latency_s = 0.5
        Bitswap(alice, store)
        got: dict[Cid, bytes] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bitswap.fetch, CIDS[:1], PeerAddress(alice.peer), got.__setitem__)
            nursery.start_soon(_denial, mallory, bob.peer, CIDS[0])
        assert got == {CIDS[0]: BLOCKS[0]}


async def test_one_peer_takes_only_so_many_streams() -> None:
    async with open_hub() as hub:
        alice, bob = hub.join(), hub.join()
        Bitswap(alice, None)
        streams = [await bob.open_stream(alice.peer, PROTOCOL) for _ in range(MAX_STREAMS_PER_PEER + 1)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(NetworkError):
            await streams[-1].receive_some()
