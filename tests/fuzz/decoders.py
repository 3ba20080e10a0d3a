"""What is fuzzed. To add a decoder, add a `Decoder` to `DECODERS`: a name, a function of bytes, and inputs that it takes.

A decoder may raise its own errors and nothing else, must end within `MAX_INPUT_S`, and must keep nothing of what it read.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import h11
import msgspec
import trio
from google.protobuf.message import DecodeError

from edgellm.blocks.bitswap import Bitswap
from edgellm.blocks.cid import Cid
from edgellm.blocks.exchange import BlockExchange, serve_blocks
from edgellm.console import guard as console_guard
from edgellm.discovery.check import fault
from edgellm.discovery.codec import DOMAIN as ADVERT_DOMAIN
from edgellm.discovery.codec import PAYLOAD_TYPE as ADVERT_TYPE
from edgellm.discovery.codec import open_advert, seal_advert
from edgellm.engine.question import piece_from_wire
from edgellm.errors import EdgeError
from edgellm.gateway import guard as gateway_guard
from edgellm.gateway.client import MAX_HEAD_BYTES
from edgellm.gateway.server import _head
from edgellm.hosting.quota import parse_lending_quota
from edgellm.hosting.quota_ledger import decode_ledger
from edgellm.hosting.runner import tokens_said
from edgellm.kv import exchange as kv_exchange
from edgellm.kv.records import DOMAIN as KV_DOMAIN
from edgellm.kv.records import PAYLOAD_TYPE as KV_TYPE
from edgellm.kv.records import Record, open_batch, seal_batch
from edgellm.kv.region import Region
from edgellm.leasing.accept import objection
from edgellm.leasing.codec import DOMAIN as PLAN_DOMAIN
from edgellm.leasing.codec import PAYLOAD_TYPE as PLAN_TYPE
from edgellm.leasing.codec import open_plan, seal_plan
from edgellm.leasing.lease import Lease, Phase
from edgellm.leasing.terms import certificate_from_wire, endpoints_from_wire, terms_from_wire, terms_to_wire
from edgellm.models.manifest import build_manifest, decode_manifest, encode_manifest
from edgellm.overlay import handover
from edgellm.overlay.framing import Frame, FrameDecoder, FrameKind, ReceiveWindow, SendWindow
from edgellm.overlay.records import HEADER_BYTES, BadRecord, Opener, RecordKind, Sealer
from edgellm.p2p.addresses import split_peer, without_peer, written
from edgellm.p2p.dht import _addresses
from edgellm.p2p.envelope import open_envelope, seal
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.identity import Identity, public_key_of_peer
from edgellm.p2p.mdns import _addresses_of
from edgellm.p2p.network import PeerAddress
from edgellm.p2p.varint import decode_varint, encode_varint
from edgellm.sessions.daemon_order import Order
from edgellm.types.plan import ClusterPlan, Endpoint, KvSharing, Member
from edgellm.wire import backend_pb2, wire_pb2
from edgellm.wire.bitswap_pb2 import BitswapMessage
from tests.unit.samples import DIGEST, GIB, advert, terms
from tests.unit.swarm_in_memory import TINY

MAX_INPUT_S = 1.0
SCOPE_BYTES = 32

SELF = Identity.from_seed(b"fuzz" * 8)
NOW = 1_800_000_000.0


@dataclass(frozen=True)
class Decoder:
    name: str
    decode: Callable[[bytes], object]
    corpus: Callable[[], list[bytes]] = field(default=lambda: [b""])
    own_errors: tuple[type[BaseException], ...] = (EdgeError,)
    share: float = 1.0
    """Of the time that each decoder gets."""


class Stopped(EdgeError):
    """A stream that has no more bytes for the one who reads it."""


class Bytes:
    """A stream of a peer that sends `data` and takes everything (`edgellm.p2p.network.Stream`)."""

    def __init__(self, data: bytes, chunk: int = 700) -> None:
        self._data = data
        self._chunk = chunk
        self.peer = SELF.peer

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        return None

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        size = min(max_bytes, self._chunk)
        received, self._data = self._data[:size], self._data[size:]
        return received

    async def aclose(self) -> None:
        return None

    async def reset(self) -> None:
        return None


class Serving:
    """A network that keeps the handlers that others register."""

    def __init__(self, stream: Bytes | None = None) -> None:
        self.handlers: dict[str, Callable[[Any], Coroutine[Any, Any, None]]] = {}
        self.stream = stream
        self.peer = SELF.peer
        self.identity = SELF

    def serve(self, protocol: str, handler: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        self.handlers[protocol] = handler

    async def open_stream(self, *_: object, **__: object) -> Bytes:
        return self.stream or Bytes(b"")


def at_once(coroutine: Coroutine[Any, Any, object]) -> object:
    """Runs what never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("it waited")


def in_trio(work: Callable[[], Coroutine[Any, Any, object]]) -> object:
    async def run() -> object:
        with trio.move_on_after(MAX_INPUT_S / 2):
            return await work()
        raise AssertionError("it waits for ever")

    return trio.run(run)


# --- what peers sign -----------------------------------------------------------------------------------------------


@cache
def sample_plan() -> ClusterPlan:
    member = Member(SELF.peer, "10.88.7.1", b"certificate", (Endpoint("10.0.0.1", 7000),))
    worker = Member(
        SELF.peer, "10.88.7.2", b"certificate", (), "l1", 0, 8, ("0",), GIB, ("/ip4/10.0.0.1/tcp/1",)
    )
    scope = bytes(range(16))
    sharing = KvSharing("session", scope, bytes(32), SELF.peer, ("/ip4/10.0.0.1/tcp/1",), 100.0)
    return ClusterPlan(
        "c" * 32,
        DIGEST,
        1,
        (member, worker),
        "overlay",
        256,
        1 << 20,
        "10.88.7.0/24",
        "ab" * 32,
        NOW,
        sharing,
    )


def _payload(envelope: bytes, domain: str, kind: bytes) -> bytes:
    return open_envelope(envelope, domain, kind)[1]


def read_advert(data: bytes) -> None:
    signer, opened = open_advert(data)
    fault(opened, signer=signer, peer=SELF.peer, now=NOW, last_sequence=3)


def read_signed_advert(data: bytes) -> None:
    read_advert(seal(SELF, ADVERT_DOMAIN, ADVERT_TYPE, data))


def read_plan(data: bytes) -> None:
    signer, plan = open_plan(data)
    lease = Lease("l1", "c" * 32, SELF.peer, ("0",), GIB, 0, 8, DIGEST, "overlay", Phase.RESERVED, NOW)
    objection(plan, signer=signer, peer=SELF.peer, lease=lease, certificate=b"certificate", now=NOW)
    for each in plan.members:
        plan.at(each.address)


def read_signed_plan(data: bytes) -> None:
    read_plan(seal(SELF, PLAN_DOMAIN, PLAN_TYPE, data))


def sample_batch() -> bytes:
    cid = Cid.of(b"block")
    region = Region(0, 8, 0, 4)
    return seal_batch([Record(bytes(SCOPE_BYTES), bytes(32), region, (cid,), 5, SELF.peer, NOW)], SELF)


def read_signed_batch(data: bytes) -> None:
    open_batch(seal(SELF, KV_DOMAIN, KV_TYPE, data))


# --- what travels in streams ---------------------------------------------------------------------------------------


def read_from_requester(data: bytes) -> None:
    message = wire_pb2.FromRequester.FromString(data)
    match message.WhichOneof("message"):
        case "reserve":
            terms_from_wire(message.reserve)
        case "commit":
            read_plan(message.commit.plan_envelope)


def read_from_host(data: bytes) -> None:
    message = wire_pb2.FromHost.FromString(data)
    endpoints_from_wire(list(message.granted.overlay_endpoints))
    certificate_from_wire(message.granted.overlay_certificate)
    str(message)


def read_messages(data: bytes) -> None:
    async def read() -> None:
        messages = MessageStream(Bytes(data), max_bytes=4096)
        while True:
            await messages.receive(wire_pb2.FromRequester)

    in_trio(read)


def read_overlay_frames(data: bytes) -> None:
    decoder, sending, receiving = FrameDecoder(), SendWindow(), ReceiveWindow()
    for start in range(0, len(data), 13):
        for frame in decoder.feed(data[start : start + 13]):
            if frame.kind is FrameKind.WINDOW:
                sending.granted(frame.credit_bytes)
            elif frame.kind is FrameKind.DATA:
                receiving.received(len(frame.data))


def read_record(data: bytes) -> None:
    opener = Opener(bytes(16))
    while len(data) >= HEADER_BYTES:
        header, data = data[:HEADER_BYTES], data[HEADER_BYTES:]
        _, length = opener.parse(header)
        body, data = data[:length], data[length:]
        opener.open(header, body)


def sample_records() -> list[bytes]:
    sealer = Sealer(bytes(16))
    return [b"".join(b"".join(sealer.seal(RecordKind.DATA, text)) for text in (b"hello", b"world"))]


def read_handover(data: bytes) -> None:
    ours, theirs = handover.channel_pair()
    with ours, theirs:
        theirs.send(data[:4096] or b"\x00")
        theirs.close()
        ours.setblocking(False)
        received = handover.receive(ours)
        if received is not None and received[1] is not None:
            received[1].close()


class KvAnswers:
    async def find(self, *_: object) -> kv_exchange.Known:
        return kv_exchange.Known()

    sample = find

    async def announce(self, peer: str, scope: bytes, batch: bytes, *_: object) -> int:
        return len(open_batch(batch).records) if batch else 0

    async def settle(self, *_: object) -> None:
        return None

    measure = settle


def read_kv_request(data: bytes) -> None:
    at_once(kv_exchange._answered(KvAnswers(), SELF.peer, wire_pb2.KvRequest.FromString(data)))  # type: ignore[arg-type]


def read_kv_found(data: bytes) -> None:
    kv_exchange._known(wire_pb2.KvFound.FromString(data), bytes(SCOPE_BYTES), frozenset())


class Blocks:
    """A store that has one block."""

    def __init__(self) -> None:
        self.block = b"block"

    async def has(self, cid: Cid) -> bool:
        return cid.matches(self.block)

    async def get(self, cid: Cid) -> bytes:
        from edgellm.errors import BlockMissing

        if not cid.matches(self.block):
            raise BlockMissing("no")
        return self.block


def read_blocks_question(data: bytes) -> None:
    network = Serving()
    serve_blocks(network, Blocks())  # type: ignore[arg-type]
    (handler,) = network.handlers.values()
    in_trio(lambda: handler(Bytes(data)))


def read_blocks_answer(data: bytes) -> None:
    exchange = BlockExchange(Serving(Bytes(data)))  # type: ignore[arg-type]
    in_trio(
        lambda: exchange.fetch([Cid.of(b"block"), Cid.of(b"other")], [PeerAddress(SELF.peer)], timeout_s=0.3)
    )


def read_bitswap(data: bytes) -> None:
    network = Serving()
    Bitswap(network, Blocks())  # type: ignore[arg-type]
    (handler,) = network.handlers.values()
    in_trio(lambda: handler(Bytes(encode_varint(len(data)) + data)))


def read_kad(data: bytes) -> None:
    from libp2p.kad_dht.pb.kademlia_pb2 import Message
    from libp2p.peer.id import ID
    from multiaddr import Multiaddr

    message = Message.FromString(data)
    infos = []
    for provider in message.providerPeers:
        addresses = []
        for address in provider.addrs:
            try:
                addresses.append(Multiaddr(address))
            except Exception:  # noqa: BLE001, S112 - as libp2p does where it reads them
                continue
        infos.append(SimpleNamespace(peer_id=ID(provider.id), addrs=addresses))
    _addresses(infos)


# --- names and addresses -------------------------------------------------------------------------------------------


def read_multiaddr(data: bytes) -> None:
    from multiaddr import Multiaddr

    text = data.decode("utf-8", "replace")
    without_peer(text)
    try:
        binary = Multiaddr(data)
    except Exception:  # noqa: BLE001 - what cannot be made is not kept
        binary = None
    if binary is not None:
        written([binary])
    split_peer(text)


def read_peer_id(data: bytes) -> None:
    public_key_of_peer(data.decode("utf-8", "replace"))


def read_mdns(data: bytes) -> None:
    _addresses_of(SimpleNamespace(text=data))  # type: ignore[arg-type]


# --- HTTP ----------------------------------------------------------------------------------------------------------


def read_http(data: bytes) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    rules = gateway_guard.Rules(8000, "secret")
    console_rules = console_guard.Rules(frozenset({"127.0.0.1:8000"}), "t" * 20, cookie_value="c" * 20)
    for start in range(0, len(data), 300):
        connection.receive_data(data[start : start + 300])
        while not isinstance(event := connection.next_event(), type(h11.NEED_DATA)):
            if isinstance(event, h11.Request):
                head = _head(event)
                for refusal in (
                    gateway_guard.refused(head, rules),
                    gateway_guard.refused_of_console(head, rules),
                ):
                    if refusal is not None:
                        refusal.body(head.path)
                console_guard.refused(
                    console_guard.Head(head.method, head.path, head.headers, head.repeated), console_rules
                )
            if isinstance(event, h11.ConnectionClosed):
                return
            if isinstance(event, h11.EndOfMessage):
                return


HTTP = [
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAuthorization: Bearer secret\r\n"
    b'Content-Length: 13\r\nOrigin: http://127.0.0.1:8000\r\n\r\n{"model": ""}',
    b"POST /v1/messages HTTP/1.1\r\nHost: localhost:8000\r\nx-api-key: secret\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n",
    b"POST /login HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nCookie: edgellm-console=cccc; a=b\r\nSec-Fetch-Site: cross-site\r\n"
    b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    b"GET http://other/ HTTP/1.1\r\nHost: a\r\n b: folded\r\n\r\n",
]


# --- what a cell says, and files ------------------------------------------------------------------------------------


def read_cell_event(data: bytes) -> None:
    from edgellm.cells.cell import Cell

    cell = Cell.__new__(Cell)
    kept = bytearray()
    cell._keep = kept.extend  # type: ignore[method-assign]
    cell._ready = SimpleNamespace(is_set=lambda: False, set=lambda: None)  # type: ignore[assignment]
    at_once(cell._handle_line(data))
    event = getattr(cell, "_first_event", None)
    if isinstance(event, dict):
        tokens_said(event)
        str(event.get("detail", ""))[:500].encode("utf-8", "replace")


def read_engine_event(data: bytes) -> None:
    piece_from_wire(backend_pb2.GenerateEvent.FromString(data))


def read_order(data: bytes) -> None:
    msgspec.json.decode(data, type=Order)


def read_ledger(data: bytes) -> None:
    decode_ledger(data)


def read_quota(data: bytes) -> None:
    parse_lending_quota(data.decode("utf-8", "replace"))


# --- the multiplexer -----------------------------------------------------------------------------------------------


class _Secured:
    """A connection that brings `data` and then ends; what is written to it is dropped."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.is_initiator = False

    async def read(self, n: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        size = len(self._data) if n is None else n
        received, self._data = self._data[:size], self._data[size:]
        return received

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        return None

    def get_remote_address(self) -> None:
        return None


def read_muxer_frames(data: bytes) -> None:
    from libp2p.peer.id import ID

    from edgellm.p2p.muxer import HardenedYamux
    from edgellm.p2p.quiet import quiet_libp2p

    quiet_libp2p()

    async def serve() -> None:
        connection = HardenedYamux(_Secured(data), ID.from_base58(SELF.peer), is_initiator=False)
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                while True:
                    try:
                        stream = await connection.accept_stream()
                    except Exception:  # noqa: BLE001 - the connection is over
                        return
                    nursery.start_soon(_drain, stream)

            nursery.start_soon(accept)
            await connection.start()
            nursery.cancel_scope.cancel()

    in_trio(serve)


async def _drain(stream: Any) -> None:
    try:
        while await stream.read(1000):
            pass
    except Exception:  # noqa: BLE001 - any end of a stream is one
        return


def _yamux(kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack("!BBHII", 0, kind, flags, stream, length) + body


YAMUX = [
    _yamux(1, 1, 1, 0) + _yamux(0, 0, 1, 5, b"hello") + _yamux(1, 4, 1, 0),
    _yamux(0, 1, 3, 4, b"data") + _yamux(1, 8, 3, 0) + _yamux(2, 1, 0, 7) + _yamux(3, 0, 0, 0),
    _yamux(1, 1, 5, 0) + _yamux(1, 2, 5, 1 << 20) + _yamux(0, 4, 5, 2, b"ab"),
]

_EARLY = (EdgeError, DecodeError)


def _wire(message: Any) -> bytes:
    return bytes(message.SerializeToString())


DECODERS = (
    Decoder("varint", decode_varint, lambda: [encode_varint(300), b"\xff" * 9], (ValueError,), 0.3),
    Decoder(
        "envelope",
        lambda data: open_envelope(data, ADVERT_DOMAIN, ADVERT_TYPE),
        lambda: [seal_advert(advert(peer=SELF.peer), SELF)],
    ),
    Decoder("advert", read_advert, lambda: [seal_advert(advert(peer=SELF.peer), SELF)]),
    Decoder(
        "signed advert",
        read_signed_advert,
        lambda: [_payload(seal_advert(advert(peer=SELF.peer), SELF), ADVERT_DOMAIN, ADVERT_TYPE)],
    ),
    Decoder("plan", read_plan, lambda: [seal_plan(sample_plan(), SELF)]),
    Decoder(
        "signed plan",
        read_signed_plan,
        lambda: [_payload(seal_plan(sample_plan(), SELF), PLAN_DOMAIN, PLAN_TYPE)],
        share=2,
    ),
    Decoder(
        "messages to a host",
        read_from_requester,
        lambda: [
            _wire(wire_pb2.FromRequester(reserve=terms_to_wire(terms()))),
            _wire(
                wire_pb2.FromRequester(commit=wire_pb2.Commit(plan_envelope=seal_plan(sample_plan(), SELF)))
            ),
        ],
        _EARLY,
    ),
    Decoder(
        "messages of a host",
        read_from_host,
        lambda: [
            _wire(
                wire_pb2.FromHost(
                    granted=wire_pb2.Granted(
                        lease="l",
                        devices=["0"],
                        overlay_endpoints=[wire_pb2.Endpoint(host="10.0.0.1", port=7)],
                    )
                )
            ),
            _wire(wire_pb2.FromHost(refused=wire_pb2.Refused(reason="no", code="busy"))),
        ],
        _EARLY,
    ),
    Decoder(
        "message stream",
        read_messages,
        lambda: [
            encode_varint(len(body)) + body
            for body in (_wire(wire_pb2.FromRequester(reserve=terms_to_wire(terms()))),)
        ],
    ),
    Decoder(
        "overlay frames",
        read_overlay_frames,
        lambda: [
            Frame(FrameKind.DATA, data=b"hello").encode() + Frame(FrameKind.WINDOW, credit_bytes=9).encode()
        ],
    ),
    Decoder("overlay records", read_record, sample_records, (EdgeError, BadRecord)),
    Decoder(
        "handover",
        read_handover,
        lambda: [struct.pack("!BxH4sI", handover.Kind.INBOUND, 7, bytes((10, 88, 0, 1)), 0)],
        (EdgeError, handover.BadMessage, BlockingIOError),
    ),
    Decoder("KV batch", open_batch, lambda: [sample_batch()]),
    Decoder("signed KV batch", read_signed_batch, lambda: [_payload(sample_batch(), KV_DOMAIN, KV_TYPE)]),
    Decoder(
        "KV questions",
        read_kv_request,
        lambda: [
            _wire(wire_pb2.KvRequest(find=wire_pb2.KvFind(scope_id=bytes(SCOPE_BYTES), names=[bytes(32)]))),
            _wire(
                wire_pb2.KvRequest(
                    announce=wire_pb2.KvAnnounce(scope_id=bytes(SCOPE_BYTES), batch=sample_batch())
                )
            ),
        ],
        _EARLY,
    ),
    Decoder(
        "KV answers",
        read_kv_found,
        lambda: [
            _wire(
                wire_pb2.KvFound(
                    records=wire_pb2.KvBatch.FromString(_payload(sample_batch(), KV_DOMAIN, KV_TYPE)).records,
                    holders=[wire_pb2.KvHolder(peer=SELF.peer, addresses=["/ip4/10.0.0.1/tcp/1"])],
                )
            )
        ],
        _EARLY,
    ),
    Decoder(
        "block questions", read_blocks_question, lambda: [struct.pack("!H", 1) + Cid.of(b"block").digest]
    ),
    Decoder(
        "block answers",
        read_blocks_answer,
        lambda: [struct.pack("!I", 5) + b"block" + struct.pack("!I", 0xFFFFFFFF)],
    ),
    Decoder(
        "bitswap",
        read_bitswap,
        lambda: [
            _wire(
                BitswapMessage(
                    wantlist=BitswapMessage.Wantlist(
                        entries=[
                            BitswapMessage.Wantlist.Entry(block=bytes(Cid.of(b"block")), send_dont_have=True)
                        ]
                    ),
                    blocks=[BitswapMessage.Block(prefix=bytes(Cid.of(b"x"))[:4], data=b"x")],
                )
            )
        ],
    ),
    Decoder(
        "DHT providers",
        read_kad,
        lambda: [b"\x08\x03\x52\x04abcd\x4a\x0a\x0a\x02\x12\x20\x12\x04\x04\x7f\x00\x00"],
        _EARLY,
    ),
    Decoder(
        "CID",
        Cid.of_same_bytes,
        lambda: [bytes(Cid.of(b"x"))],
        share=0.3,
    ),
    Decoder(
        "CID as text",
        lambda data: Cid.parse(data.decode("latin-1")),
        lambda: [str(Cid.of(b"x")).encode()],
        share=0.3,
    ),
    Decoder(
        "multiaddr",
        read_multiaddr,
        lambda: [b"/ip4/10.0.0.1/tcp/4001/p2p/" + SELF.peer.encode(), b"\x04\x7f\x00\x00\x01\x06\x0f\xa1"],
    ),
    Decoder("peer id", read_peer_id, lambda: [SELF.peer.encode()], (ValueError,), 0.5),
    Decoder(
        "mDNS",
        read_mdns,
        lambda: [
            bytes([len(entry)]) + entry
            for entry in (b"dnsaddr=/ip4/10.0.0.1/tcp/4001/p2p/" + SELF.peer.encode(),)
        ],
    ),
    Decoder("manifest", decode_manifest, lambda: [encode_manifest(build_manifest(TINY, None))]),
    Decoder("HTTP", read_http, lambda: list(HTTP), (h11.RemoteProtocolError,), 2),
    Decoder(
        "cell events",
        read_cell_event,
        lambda: [b'{"event": "tokens", "count": 7}', json.dumps({"event": "failed", "detail": "x"}).encode()],
        share=0.5,
    ),
    Decoder("engine events", read_engine_event, lambda: [_wire(backend_pb2.GenerateEvent())], _EARLY, 0.5),
    Decoder(
        "session order",
        read_order,
        lambda: [msgspec.json.encode(Order("n", "m", "/d", (), 900.0))],
        (msgspec.DecodeError, UnicodeDecodeError),
        0.3,
    ),
    Decoder(
        "quota ledger",
        read_ledger,
        lambda: [
            b'{"version":1,"taken":[{"who":"*","kind":"time","period":"day","began":1.0,"amount":2.0}]}'
        ],
        (ValueError,),
        0.3,
    ),
    Decoder("quota", read_quota, lambda: [b"2h/day,1e6tok/day,10GB/week,30min/hour/member"], share=0.3),
    Decoder("muxer frames", read_muxer_frames, lambda: list(YAMUX), share=2),
)


def decoder(name: str) -> Decoder:
    return next(each for each in DECODERS if each.name == name)


def run_one(each: Decoder, data: bytes) -> float:
    """Decodes one input; the CPU time it took, in seconds. Raises what is no error of the decoder's own."""
    began = time.process_time()
    try:
        each.decode(data)
    except each.own_errors:
        pass
    except BaseExceptionGroup as group:
        _, strange = group.split(each.own_errors)
        if strange is not None:
            raise
    return time.process_time() - began
