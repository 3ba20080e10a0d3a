"""Blocks between a node and Helia, an IPFS implementation of others, both ways over Bitswap."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgellm.blocks.bitswap import Bitswap
from edgellm.blocks.cid import Cid
from edgellm.blocks.disk import DiskStore, open_disk_store
from edgellm.blocks.exchange import BlockExchange, serve_blocks
from edgellm.errors import BlockMissing, BlocksNotSent
from edgellm.p2p.addresses import split_peer
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import Network, PeerAddress
from edgellm.p2p.node import NodeConfig, open_node
from tests.integration.helia import Helia, HeliaError, helia_peer

MIB = 1 << 20


@dataclass(frozen=True)
class Sides:
    """A node as `edgellm host` has it, and Helia."""

    node: Network
    store: DiskStore
    exchange: BlockExchange
    helia: Helia

    @property
    def holder(self) -> PeerAddress:
        """Helia, as the node knows it."""
        address, peer = split_peer(self.helia.address)
        return PeerAddress(peer, (str(address),))


@asynccontextmanager
async def sides(directory: Path) -> AsyncIterator[Sides]:
    config = NodeConfig(Identity.generate(), listen=("/ip4/127.0.0.1/tcp/0",))
    async with (
        helia_peer() as helia,
        open_node(config) as node,
        open_disk_store(directory / "blocks", 1 << 30) as store,
    ):
        serve_blocks(node, store)
        yield Sides(node, store, BlockExchange(node, Bitswap(node, store)), helia)


async def test_helia_gets_blocks_of_a_node(tmp_path: Path) -> None:
    async with sides(tmp_path) as peers:
        blocks = [os.urandom(size) for size in (1, 100_000, MIB)]
        cids = await peers.store.put(blocks)
        await peers.helia.dial(peers.node.addresses[0])
        assert [await peers.helia.get(cid) for cid in cids] == blocks

        many = await peers.store.put([os.urandom(256 << 10) for _ in range(64)])
        got, milliseconds = await peers.helia.get_many(many)
        assert got == 16 * MIB
        print(f"Helia got 16 MiB from a node at {got / 1e3 / milliseconds:.0f} MB/s")

        with pytest.raises(HeliaError):
            await peers.helia.get(Cid.of(b"nobody has this"), deadline_ms=1000)
        assert await peers.helia.get(cids[0]) == blocks[0], "the node answers no more"


async def test_a_node_gets_blocks_of_helia(tmp_path: Path) -> None:
    async with sides(tmp_path) as peers:
        blocks = [os.urandom(size) for size in (1, 100_000, MIB, *[256 << 10] * 64)]
        cids = [await peers.helia.put(block) for block in blocks]
        assert cids == [Cid.of(block) for block in blocks], "the names agree"
        assert await peers.exchange.fetch(cids, [peers.holder], timeout_s=20) == blocks

        absent = Cid.of(b"nobody has this")
        with pytest.raises(BlockMissing) as missing:
            await peers.exchange.fetch([*cids[:2], absent], [peers.holder], timeout_s=20)
        assert not isinstance(missing.value, BlocksNotSent), "Helia said that it does not have it"


async def test_a_block_goes_from_helia_through_a_node_to_another_helia(tmp_path: Path) -> None:
    async with sides(tmp_path) as peers, helia_peer() as other:
        block = os.urandom(300_000)
        cid = await peers.helia.put(block)
        await peers.store.put(await peers.exchange.fetch([cid], [peers.holder], timeout_s=20))
        await other.dial(peers.node.addresses[0])
        assert await other.get(cid) == block
