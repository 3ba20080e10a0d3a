"""Blocks between nodes: `/edgellm/blocks/1`, many in one question, back to back in the answer.

asker   count (2 bytes), then `count` SHA-256 digests (32 bytes each)
holder  for each in order: length (4 bytes; `_MISSING`: not here), then the block
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence

import structlog
import trio

from edgellm.blocks.bitswap import Bitswap, Came
from edgellm.blocks.cid import Cid
from edgellm.blocks.link import Link
from edgellm.blocks.store import MAX_BLOCK_BYTES, BlockStore
from edgellm.errors import BlockMissing, BlocksNotSent, NetworkError, ProtocolUnknown, ProtocolViolation
from edgellm.p2p.network import Network, PeerAddress, Stream

log = structlog.get_logger(__name__)

PROTOCOL = "/edgellm/blocks/1"
MAX_CIDS = 512
"""In one question."""
MAX_AT_ONCE = 32
"""Questions that a holder answers; more are refused, which the asker sees as a missing block."""
QUESTION_S = 5.0
ANSWER_S = 120.0
_COUNT, _LENGTH = struct.Struct("!H"), struct.Struct("!I")
_MISSING = 0xFFFFFFFF
# Small blocks share a message: each costs an encryption and a wake-up on both sides.
_SENT_TOGETHER_BYTES = 64 << 10
_DIGEST_BYTES = 32
_MAX_LINKS = 1024
# Less tells of the round trip alone.
_MEASURED_BYTES = 64 << 10
_WEIGHT = 0.5


def serve_blocks(network: Network, store: BlockStore) -> None:
    """Gives the blocks of `store` to everybody who knows their CIDs, until the network ends."""
    slots = trio.CapacityLimiter(MAX_AT_ONCE)

    async def serve(stream: Stream) -> None:
        if slots.available_tokens < 1:
            await stream.reset()
            return
        async with slots:
            with trio.fail_after(QUESTION_S):
                source = _Reader(stream)
                (count,) = _COUNT.unpack(await source.exactly(_COUNT.size))
                if not 1 <= count <= MAX_CIDS:
                    raise ProtocolViolation(f"{stream.peer} asks for {count} blocks at once")
                digests = await source.exactly(count * _DIGEST_BYTES)
            with trio.fail_after(ANSWER_S):
                answer = bytearray()
                for start in range(0, len(digests), _DIGEST_BYTES):
                    try:
                        block = await store.get(Cid(digests[start : start + _DIGEST_BYTES]))
                    except BlockMissing:
                        answer += _LENGTH.pack(_MISSING)
                    else:
                        answer += _LENGTH.pack(len(block))
                        answer += block
                    if len(answer) >= _SENT_TOGETHER_BYTES:
                        await stream.send_all(answer)
                        answer = bytearray()
                await stream.send_all(answer)

    network.serve(PROTOCOL, serve)


class BlockExchange:
    """Fetches blocks, and remembers what the way to each holder is like (`edgellm.kv.holdings.BlockFetcher`)."""

    def __init__(self, network: Network, bitswap: Bitswap | None = None) -> None:
        """`bitswap`: how to ask holders that are IPFS peers and no nodes of ours."""
        self._network = network
        self._bitswap = bitswap
        self._links: OrderedDict[str, Link] = OrderedDict()

    def link(self, holder: str) -> Link:
        """What was measured of the way to `holder`; zeros where nothing was."""
        return self._links.get(holder, Link())

    async def fetch(
        self,
        cids: Sequence[Cid],
        holders: Sequence[PeerAddress],
        *,
        timeout_s: float,
        came: Came | None = None,
    ) -> list[bytes]:
        """The blocks, each of which matches its CID, in order; what one holder does not give the next one is asked for.

        `came` is told of each of them at once.

        Raises BlockMissing when the holders do not have some, BlocksNotSent when one of them failed or some are not had within
        `timeout_s`; it names the holders and what each one did.
        """
        blocks: dict[Cid, bytes] = {}
        troubles: list[str] = []

        def arrived(cid: Cid, block: bytes) -> None:
            blocks[cid] = block
            if came is not None:
                came(cid, block)

        with trio.move_on_after(timeout_s) as deadline:
            for holder in holders:
                wanted = [cid for cid in dict.fromkeys(cids) if cid not in blocks]
                for start in range(0, len(wanted), MAX_CIDS):
                    try:
                        await self._ask(holder, wanted[start : start + MAX_CIDS], arrived)
                    except NetworkError as error:
                        troubles.append(f"{holder.peer}: {error}")
                        break
                if len(blocks) == len(set(cids)):
                    break
        if missing := [cid for cid in cids if cid not in blocks]:
            if deadline.cancelled_caught:
                troubles.append(f"no answer within {timeout_s:.1f} s")
            why = "; ".join(troubles) or f"{len(holders)} holders do not have them"
            kind = BlocksNotSent if troubles else BlockMissing
            raise kind(f"{len(missing)} of {len(cids)} blocks are missing: {why}")
        return [blocks[cid] for cid in cids]

    async def _ask(self, holder: PeerAddress, cids: Sequence[Cid], came: Came) -> None:
        """Raises NetworkError; what came before is kept."""
        try:
            stream = await self._network.open_stream(holder.peer, PROTOCOL, addresses=holder.addresses)
        except ProtocolUnknown:
            if self._bitswap is None:
                raise
            await self._bitswap.fetch(cids, holder, came)
        else:
            await self._ask_node(holder, stream, cids, came)

    async def _ask_node(self, holder: PeerAddress, stream: Stream, cids: Sequence[Cid], came: Came) -> None:
        begun = trio.current_time()
        came_bytes, first_s = 0, 0.0
        try:
            await stream.send_all(_COUNT.pack(len(cids)) + b"".join(cid.digest for cid in cids))
            source = _Reader(stream)
            asked = trio.current_time()
            for cid in cids:
                (length,) = _LENGTH.unpack(await source.exactly(_LENGTH.size))
                first_s = first_s or trio.current_time() - asked
                if length == _MISSING:
                    continue
                if length > MAX_BLOCK_BYTES:
                    raise ProtocolViolation(f"{holder.peer} sends a block of {length} bytes")
                block = await source.exactly(length)
                if not cid.matches(block):
                    raise ProtocolViolation(f"{holder.peer} sends something else as block {cid}")
                came_bytes += length
                came(cid, block)
        finally:
            # Also of an answer that was given up: what came of it tells how slow the way is.
            self._learn(holder.peer, first_s, came_bytes, trio.current_time() - begun)
            with trio.CancelScope(shield=True):
                await stream.reset()

    def _learn(self, holder: str, first_s: float, came_bytes: int, seconds: float) -> None:
        known = self._links.pop(holder, Link())
        throughput, rtt = known.throughput_bytes_s, known.rtt_s
        if came_bytes >= _MEASURED_BYTES and seconds > 0:
            now = came_bytes / seconds
            # A way that has become slower is believed at once: what is expected of it too long is waited for in vain.
            throughput = now if now < throughput else _mixed(throughput, now)
        if first_s:
            rtt = _mixed(rtt, first_s)
        self._links[holder] = Link(throughput, rtt)
        while len(self._links) > _MAX_LINKS:
            self._links.popitem(last=False)


def _mixed(before: float, now: float) -> float:
    return now if not before else before + _WEIGHT * (now - before)


class _Reader:
    """Reads whole parts of a stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._pending = bytearray()

    async def exactly(self, size: int) -> bytes:
        """Raises NetworkError when the stream ends before."""
        while len(self._pending) < size:
            received = await self._stream.receive_some(1 << 18)
            if not received:
                raise NetworkError(f"{self._stream.peer} ended the answer in the middle")
            self._pending += received
        part = bytes(memoryview(self._pending)[:size])
        del self._pending[:size]
        return part
