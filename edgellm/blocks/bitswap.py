"""Blocks to and from IPFS peers of any make, over Bitswap 1.2 (https://specs.ipfs.tech/bitswap-protocol/).

Nodes of ours use `exchange` among themselves, which is faster. A Bitswap peer never answers on the stream of a question: it
opens one of its own, and may take any time for it. What nobody here asked for is dropped unread.

py-libp2p 0.8.1 has a Bitswap too. It answers on the question's stream, where other makes do not look, keeps whatever it is
sent, and waits for ever for what a peer has said it does not have; hence this one, over our own streams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.store import BlockStore
from edgellm.errors import BlockMissing, NetworkError, ProtocolViolation, UsageError
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Network, PeerAddress, Stream
from edgellm.wire.bitswap_pb2 import BitswapMessage

log = structlog.get_logger(__name__)

PROTOCOL = "/ipfs/bitswap/1.2.0"
MAX_MESSAGE_BYTES = 4 << 20
"""The specification's limit."""
MAX_FOREIGN_BLOCK_BYTES = 2 << 20
"""What other makes send at most."""
MAX_STREAMS_PER_PEER = 16
MAX_ANSWERS_AT_ONCE = 16
"""Messages of others that are answered at the same time; more wait. Each holds a block or two in memory."""
IDLE_S = 300.0
"""An incoming stream is ended after so long without a message. Some makes keep one open for all their questions."""
STALL_S = 10.0
"""A holder that sends nothing that was asked for is given up after so long."""
REMIND_S = 2.5
"""Some makes answer one message's worth of a question, 4 MB, and forget the rest: after so long it is asked again."""
_SEND_S = 60.0
_OPEN_S = 10.0
_CANCEL_S = 1.0
_CIDS_IN_MESSAGE = 512
_SENT_TOGETHER_BYTES = 512 << 10

_Wantlist = BitswapMessage.Wantlist

Came = Callable[[Cid, bytes], None]
"""Is told of each block that comes."""


@dataclass
class _Fetch:
    """What one caller waits for."""

    missing: dict[Cid, None]
    tell: Came
    denied: dict[str, set[Cid]] = field(default_factory=dict)
    news: trio.Event = field(default_factory=trio.Event)

    def came(self, cid: Cid, block: bytes) -> None:
        if cid in self.missing:
            del self.missing[cid]
            self.tell(cid, block)
            self.news.set()

    def deny(self, peer: str, cid: Cid) -> None:
        if cid in self.missing:
            self.denied.setdefault(peer, set()).add(cid)
            self.news.set()

    def expects(self, peer: str) -> bool:
        return not self.missing.keys() <= self.denied.get(peer, set())


class Bitswap:
    """Gives the blocks of `store`, if there is one, to whoever knows their CIDs, until the network ends; and asks others."""

    def __init__(self, network: Network, store: BlockStore | None) -> None:
        self._network = network
        self._store = store
        self._fetches: list[_Fetch] = []
        self._streams: Counter[str] = Counter()
        self._answers = trio.CapacityLimiter(MAX_ANSWERS_AT_ONCE)
        network.serve(PROTOCOL, self._listen)

    async def fetch(
        self, cids: Sequence[Cid], holder: PeerAddress, came: Came, *, stall_s: float = STALL_S
    ) -> None:
        """Tells those of the blocks that `holder` has, as they come; each matches its CID.

        Raises NetworkError when it cannot be reached, or sends nothing new for `stall_s` before it has given or denied all.
        """
        fetch = _Fetch(dict.fromkeys(cids), came)
        wanted = tuple(fetch.missing)
        stream = await self._network.open_stream(
            holder.peer, PROTOCOL, addresses=holder.addresses, timeout_s=_OPEN_S
        )
        messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
        self._fetches.append(fetch)
        try:
            await _want(messages, wanted, cancel=False)
            while fetch.expects(holder.peer):
                fetch.news = trio.Event()
                with trio.move_on_after(stall_s) as deadline:
                    await self._news_of(fetch, messages)
                if deadline.cancelled_caught:
                    raise NetworkError(f"{holder.peer} sent nothing more for {stall_s:g} s")
        finally:
            self._fetches.remove(fetch)
            # Also what came: some makes do not send a block again while they have an old question for it.
            with trio.move_on_after(_CANCEL_S, shield=True), suppress(NetworkError):
                await _want(messages, wanted, cancel=True)
                await stream.aclose()

    @staticmethod
    async def _news_of(fetch: _Fetch, messages: MessageStream) -> None:
        """Waits for news; asks again for what is missing while there are none. Raises NetworkError."""
        while True:
            with trio.move_on_after(REMIND_S) as quiet:
                await fetch.news.wait()
            if not quiet.cancelled_caught:
                return
            missing = tuple(fetch.missing)
            await _want(messages, missing, cancel=True)
            await _want(messages, missing, cancel=False)

    async def _listen(self, stream: Stream) -> None:
        peer = stream.peer
        if self._streams[peer] >= MAX_STREAMS_PER_PEER:
            await stream.reset()
            return
        self._streams[peer] += 1
        try:
            messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
            while True:
                message = await messages.receive(BitswapMessage, timeout_s=IDLE_S)
                self._take(peer, message)
                if message.wantlist.entries:
                    async with self._answers:
                        await self._answer(peer, message.wantlist)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    def _take(self, peer: str, message: BitswapMessage) -> None:
        """Hands blocks and news of them to those who wait for them."""
        if not self._fetches:
            return
        for block in message.blocks:
            if block.prefix != Cid.PREFIX or len(block.data) > MAX_FOREIGN_BLOCK_BYTES:
                continue
            cid = Cid.of(block.data)
            for fetch in self._fetches:
                fetch.came(cid, block.data)
        for presence in message.presences:
            if presence.type == BitswapMessage.DONT_HAVE and (denied := _understood(presence.cid)):
                for fetch in self._fetches:
                    fetch.deny(peer, denied)

    async def _answer(self, peer: str, wantlist: BitswapMessage.Wantlist) -> None:
        if len(wantlist.entries) > MAX_MESSAGE_BYTES // 64:
            raise ProtocolViolation(f"{peer} asks for {len(wantlist.entries)} blocks in one message")
        replies = _Replies(self._network, peer)
        try:
            for entry in wantlist.entries:
                if not entry.cancel:
                    await self._answer_entry(entry, replies)
            await replies.flush()
        finally:
            await replies.aclose()

    async def _answer_entry(self, entry: BitswapMessage.Wantlist.Entry, replies: _Replies) -> None:
        # Others name the same bytes also as something else (a directory, a file); what they are is their business.
        cid = _understood(entry.block)
        if cid is not None and self._store is not None:
            if entry.want_type == _Wantlist.HAVE:
                if await self._store.has(cid):
                    await replies.presence(entry.block, BitswapMessage.HAVE)
                    return
            else:
                try:
                    block = await self._store.get(cid)
                except BlockMissing:
                    pass
                else:
                    await replies.block(entry.block[: -len(cid.digest)], block)
                    return
        if entry.send_dont_have:
            await replies.presence(entry.block, BitswapMessage.DONT_HAVE)


async def _want(messages: MessageStream, cids: Sequence[Cid], *, cancel: bool) -> None:
    for start in range(0, len(cids), _CIDS_IN_MESSAGE):
        entries = [
            _Wantlist.Entry(block=bytes(cid), priority=1, cancel=cancel, send_dont_have=not cancel)
            for cid in cids[start : start + _CIDS_IN_MESSAGE]
        ]
        await messages.send(BitswapMessage(wantlist=_Wantlist(entries=entries)), timeout_s=_SEND_S)


class _Replies:
    """Messages to a peer on a stream of our own, opened with the first one."""

    def __init__(self, network: Network, peer: str) -> None:
        self._network = network
        self._peer = peer
        self._messages: MessageStream | None = None
        self._pending = BitswapMessage()
        self._bytes = 0

    async def block(self, prefix: bytes, data: bytes) -> None:
        self._pending.blocks.append(BitswapMessage.Block(prefix=prefix, data=data))
        await self._added(len(data))

    async def presence(self, cid: bytes, kind: BitswapMessage.PresenceType) -> None:
        self._pending.presences.append(BitswapMessage.Presence(cid=cid, type=kind))
        await self._added(len(cid))

    async def flush(self) -> None:
        if not self._bytes:
            return
        # There must be a wantlist, if only an empty one: old versions of Kubo fail without
        # (https://github.com/paritytech/litep2p/pull/457).
        self._pending.wantlist.full = False
        self._pending.wantlist.SetInParent()
        if self._messages is None:
            stream = await self._network.open_stream(self._peer, PROTOCOL, timeout_s=_OPEN_S)
            self._messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
        await self._messages.send(self._pending, timeout_s=_SEND_S)
        self._pending = BitswapMessage()
        self._bytes = 0

    async def aclose(self) -> None:
        if self._messages is not None:
            await self._messages.stream.aclose()

    async def _added(self, size: int) -> None:
        self._bytes += size
        if self._bytes >= _SENT_TOGETHER_BYTES:
            await self.flush()


def _understood(binary: bytes) -> Cid | None:
    """The block that is meant, whatever codec it is named with; None for other hashes than SHA-256, and for nonsense."""
    try:
        return Cid.of_same_bytes(binary)
    except UsageError:
        return None
