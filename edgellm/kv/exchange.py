"""What nodes ask each other about pieces: `/edgellm/kv/1`. One question and one answer a stream, each bounded in size and time.

Whoever answers decides what the asker may know (`Answers`); here peers are held to a rate and to the form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from edgellm.errors import NetworkError, ProtocolViolation, UsageError
from edgellm.kv.names import NAME_BYTES
from edgellm.kv.records import Record, record_from_wire, record_to_wire
from edgellm.kv.region import Region
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Network, PeerAddress, Stream
from edgellm.p2p.pace import Pace, Rate
from edgellm.wire import wire_pb2

PROTOCOL = "/edgellm/kv/1"
ANSWER_S = 2.0
MAX_REQUEST_BYTES = 256 * 1024
MAX_REPLY_BYTES = 1 << 20
MAX_NAMES = 1024
MAX_RECORDS = 4096
"""In one answer; one that would be larger than `MAX_REPLY_BYTES` ends before."""
MAX_USES = 256
MAX_ADDRESSES = 16
MAX_AT_ONCE = 32
MAX_AT_ONCE_EACH = 16
"""Of one peer: a member asks once for each prompt that comes meanwhile, and nobody shall take all the places."""
PACE = Rate(burst=64, per_s=32)
"""Questions of one peer. A rank asks once a prompt and announces ten times a second at most."""
MAX_PEERS = 1024


@dataclass(frozen=True, slots=True)
class Use:
    """What became of a fetched piece."""

    name: bytes
    region: Region
    holder: str
    """Empty: the member that tells it."""
    outcome: str
    tokens: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Known:
    """What somebody knows of pieces, and where their holders can be reached."""

    records: tuple[Record, ...] = ()
    holders: tuple[PeerAddress, ...] = ()


class Answers(Protocol):
    """A node's answers. Raises ProtocolViolation for what this peer may not ask."""

    async def find(self, peer: str, scope: bytes, names: tuple[bytes, ...], region: Region) -> Known: ...

    async def sample(self, peer: str, scope: bytes) -> Known:
        """One record of each holder, of those that were used last: enough to measure the way to them."""

    async def announce(
        self, peer: str, scope: bytes, batch: bytes, addresses: tuple[str, ...], uses: tuple[Use, ...]
    ) -> int:
        """How many of the batch's records are kept."""

    async def settle(self, peer: str, scope: bytes) -> None: ...

    async def measure(self, peer: str, scope: bytes) -> None: ...


def serve_records(network: Network, answers: Answers) -> None:
    """Answers `/edgellm/kv/1` until the network ends."""
    pace = Pace(PACE, max_keys=MAX_PEERS)
    slots = trio.CapacityLimiter(MAX_AT_ONCE)
    busy: Counter[str] = Counter()

    @asynccontextmanager
    async def counted(peer: str) -> AsyncIterator[None]:
        busy[peer] += 1
        try:
            yield
        finally:
            busy[peer] -= 1
            if not busy[peer]:
                del busy[peer]

    async def answer(stream: Stream) -> None:
        messages = MessageStream(stream, max_bytes=MAX_REPLY_BYTES)
        if not pace.admits(stream.peer, trio.current_time()) or slots.available_tokens < 1:
            await messages.send(wire_pb2.KvReply(refused="too many questions"), timeout_s=ANSWER_S)
            return
        if busy[stream.peer] >= MAX_AT_ONCE_EACH:
            await messages.send(wire_pb2.KvReply(refused="too many questions at once"), timeout_s=ANSWER_S)
            return
        # Counted before anything waits.
        async with counted(stream.peer), slots:
            request = await messages.receive(
                wire_pb2.KvRequest, timeout_s=ANSWER_S, max_bytes=MAX_REQUEST_BYTES
            )
            with trio.move_on_after(ANSWER_S) as deadline:
                try:
                    reply = await _answered(answers, stream.peer, request)
                except ProtocolViolation as error:
                    reply = wire_pb2.KvReply(refused=str(error)[:200])
            if deadline.cancelled_caught:
                reply = wire_pb2.KvReply(refused="no answer in time")
            await messages.send(reply, timeout_s=ANSWER_S)

    network.serve(PROTOCOL, answer)


async def ask_find(
    network: Network,
    whom: PeerAddress,
    scope: bytes,
    names: Sequence[bytes],
    region: Region | None,
    *,
    timeout_s: float = ANSWER_S,
) -> Known:
    """What `whom` knows of pieces with anything of `region`; without names one record of each holder. Raises NetworkError."""
    find = wire_pb2.KvFind(
        scope_id=scope, names=names[:MAX_NAMES], region=_region_to_wire(region) if region else None
    )
    reply = await _ask(network, whom, wire_pb2.KvRequest(find=find), "found", timeout_s)
    return _known(reply.found, scope, frozenset(names))


async def announce(
    network: Network,
    whom: PeerAddress,
    scope: bytes,
    batch: bytes,
    addresses: Sequence[str],
    uses: Sequence[Use],
    *,
    timeout_s: float = ANSWER_S,
) -> int:
    """How many records of the signed `batch` were new to `whom`. Raises NetworkError."""
    told = wire_pb2.KvAnnounce(
        scope_id=scope,
        batch=batch,
        addresses=addresses[:MAX_ADDRESSES],
        uses=[_use_to_wire(use) for use in uses],
    )
    reply = await _ask(network, whom, wire_pb2.KvRequest(announce=told), "announced", timeout_s)
    return reply.announced.kept


async def ask_settle(
    network: Network, whom: PeerAddress, scope: bytes, *, timeout_s: float = ANSWER_S
) -> None:
    """Returns once `whom` has announced what it has. Raises NetworkError."""
    settle = wire_pb2.KvRequest(settle=wire_pb2.KvSettle(scope_id=scope))
    await _ask(network, whom, settle, "settled", timeout_s)


async def ask_measure(
    network: Network, whom: PeerAddress, scope: bytes, *, timeout_s: float = ANSWER_S
) -> None:
    """Returns once `whom` has measured the ways to holders that it knew nothing of. Raises NetworkError."""
    measure = wire_pb2.KvRequest(measure=wire_pb2.KvMeasure(scope_id=scope))
    await _ask(network, whom, measure, "measured", timeout_s)


async def _ask(
    network: Network, whom: PeerAddress, request: wire_pb2.KvRequest, expected: str, timeout_s: float
) -> wire_pb2.KvReply:
    with trio.move_on_after(timeout_s):
        stream = await network.open_stream(whom.peer, PROTOCOL, addresses=whom.addresses, timeout_s=timeout_s)
        messages = MessageStream(stream, max_bytes=MAX_REPLY_BYTES)
        try:
            await messages.send(request, timeout_s=timeout_s)
            reply = await messages.receive(wire_pb2.KvReply, timeout_s=timeout_s)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 0.5):
                await messages.aclose()
        if reply.WhichOneof("reply") != expected:
            said = reply.refused[:200] or "something else"
            raise NetworkError(f"peer {whom.peer} did not answer about KV pieces: {said}")
        return reply
    raise NetworkError(f"peer {whom.peer} did not answer about KV pieces within {timeout_s:g} s")


async def _answered(answers: Answers, peer: str, request: wire_pb2.KvRequest) -> wire_pb2.KvReply:
    match request.WhichOneof("request"):
        case "find":
            names = _names(request.find.names)
            if names:
                known = await answers.find(peer, request.find.scope_id, names, _region(request.find.region))
            else:
                known = await answers.sample(peer, request.find.scope_id)
            return wire_pb2.KvReply(found=_known_to_wire(known, names))
        case "announce":
            told = request.announce
            if len(told.uses) > MAX_USES or len(told.addresses) > MAX_ADDRESSES:
                raise ProtocolViolation("an announcement that is too long")
            kept = await answers.announce(
                peer, told.scope_id, told.batch, tuple(told.addresses), tuple(_use(use) for use in told.uses)
            )
            return wire_pb2.KvReply(announced=wire_pb2.KvAnnounced(kept=kept))
        case "settle":
            await answers.settle(peer, request.settle.scope_id)
            return wire_pb2.KvReply(settled=wire_pb2.KvSettle())
        case "measure":
            await answers.measure(peer, request.measure.scope_id)
            return wire_pb2.KvReply(measured=wire_pb2.KvMeasure())
        case _:
            raise ProtocolViolation("a question that is none")


def _known_to_wire(known: Known, names: tuple[bytes, ...]) -> wire_pb2.KvFound:
    """Cut where it would be too long, at the end of the prompt."""
    order = {name: index for index, name in enumerate(names)}
    holders = sorted({record.holder for record in known.records})
    places = {holder.peer: holder.addresses for holder in known.holders}
    found = wire_pb2.KvFound(
        holders=[
            wire_pb2.KvHolder(peer=peer, addresses=places.get(peer, ())[:MAX_ADDRESSES]) for peer in holders
        ]
    )
    left = MAX_REPLY_BYTES - found.ByteSize() - 1024
    for record in sorted(known.records, key=lambda record: order.get(record.name, 0))[:MAX_RECORDS]:
        message = record_to_wire(record, holders.index(record.holder))
        left -= message.ByteSize() + 8
        if left < 0:
            break
        found.records.append(message)
    return found


def _known(found: wire_pb2.KvFound, scope: bytes, asked: frozenset[bytes]) -> Known:
    if len(found.records) > MAX_RECORDS or len(found.holders) > MAX_RECORDS:
        raise ProtocolViolation("an answer with too many KV records")
    holders = tuple(
        PeerAddress(holder.peer[:128], tuple(holder.addresses[:MAX_ADDRESSES])) for holder in found.holders
    )
    if any(record.holder >= len(holders) for record in found.records):
        raise ProtocolViolation("an answer with a KV record of nobody")
    records = tuple(
        record_from_wire(record, scope, holders[record.holder].peer)
        for record in found.records
        if record.name in asked or not asked
    )
    return Known(records, holders)


def _names(names: Sequence[bytes]) -> tuple[bytes, ...]:
    if len(names) > MAX_NAMES or any(len(name) != NAME_BYTES for name in names):
        raise ProtocolViolation("names of KV chunks that are none, or too many")
    return tuple(names)


def _region(message: wire_pb2.KvRegion) -> Region:
    try:
        return Region(message.first_layer, message.end_layer, message.first_head, message.end_head)
    except (UsageError, ValueError) as error:
        raise ProtocolViolation(f"a region of a KV cache that is none: {error}") from error


def _region_to_wire(region: Region) -> wire_pb2.KvRegion:
    return wire_pb2.KvRegion(
        first_layer=region.first_layer,
        end_layer=region.end_layer,
        first_head=region.first_head,
        end_head=region.end_head,
    )


def _use(message: wire_pb2.KvUse) -> Use:
    if len(message.name) != NAME_BYTES or len(message.holder) > 128 or len(message.outcome) > 32:
        raise ProtocolViolation("a use of a KV piece that is not of its form")
    return Use(
        message.name,
        _region(message.region),
        message.holder,
        message.outcome,
        message.tokens,
        message.size_bytes,
    )


def _use_to_wire(use: Use) -> wire_pb2.KvUse:
    return wire_pb2.KvUse(
        name=use.name,
        region=_region_to_wire(use.region),
        holder=use.holder,
        outcome=use.outcome,
        tokens=use.tokens,
        size_bytes=use.size_bytes,
    )
