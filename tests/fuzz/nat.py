"""Ways through routers: AutoNAT, hole punching, relays, and what peers and routers say of this node's addresses.

These handlers end a stream whatever goes wrong in them, so that each is tried with an ear at what it drops: errors that a peer
is expected to cause there are few, and everything else is a finding.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import trio
import trio.testing
from google.protobuf.message import DecodeError
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import ParseError
from libp2p.host.autonat.pb.autonat_pb2 import Message as AutoNat
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.io.exceptions import IOException
from libp2p.kad_dht.pb.kademlia_pb2 import Message as Kademlia
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from edgellm.errors import EdgeError, NetworkError
from edgellm.p2p import autonat, port_mapping, providers, punch, relay, relay_server
from edgellm.p2p.addresses import ip_endpoint, is_public
from edgellm.p2p.autonat import DialBackServer
from edgellm.p2p.identify import ask_how_seen
from edgellm.p2p.punch import HolePuncher, punchable
from edgellm.p2p.relay_limits import Ledger, RelayLimits
from tests.fuzz.decoder import Decoder
from tests.fuzz.peer import SELF, prefixed, wire

OWN = ID.from_base58(SELF.peer)
PEER = ID(b"\x00\x24\x08\x01\x12\x20" + bytes(range(32)))
SOURCE = "198.51.100.7"
VIRTUAL_S = 60.0
"""In which each ends, by a clock that does not wait."""
NO_MESSAGE = (DecodeError, IOException, ParseError, trio.TooSlowError)
"""What a peer causes that sends something else, or too little."""
PUBLIC = "/ip4/8.8.4.4/tcp/4001"
INSIDE = "/ip4/192.168.1.1/tcp/80"


def in_no_time(work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    async def run() -> None:
        with trio.fail_after(VIRTUAL_S):
            await work()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


class Stream:
    """A libp2p stream of a peer that says `data`."""

    def __init__(self, data: bytes, *, relayed: bool = False) -> None:
        self._data = data
        self.sent = b""
        self.over = False
        self.muxed_stream = SimpleNamespace(_ended=trio.Event())
        self.muxed_stream._ended.set()
        kind = ConnectionType.RELAYED if relayed else ConnectionType.DIRECT
        self.muxed_conn = SimpleNamespace(
            peer_id=PEER,
            get_remote_address=lambda: (SOURCE, 4001),
            get_connection_type=lambda: kind,
            is_established=True,
        )

    async def read(self, n: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        size = len(self._data) if n is None else n
        received, self._data = self._data[:size], self._data[size:]
        return received

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += data

    async def close(self) -> None:
        self.over = True

    reset = close


class Host:
    """A libp2p host, connected with `PEER` through whom it is asked, that notes whom it dials."""

    def __init__(self, stream: Stream, *, connected: bool = True) -> None:
        self.stream = stream
        self.handlers: list[Callable[[Any], Coroutine[Any, Any, None]]] = []
        self.dialled: list[str] = []
        self.connected = connected
        self.connections = {PEER: [self]}
        self.transport_manager = SimpleNamespace(transport_for_dialing=lambda address: self)
        self.upgrader = SimpleNamespace(upgrade_security=self._upgrade)
        self.direction = "inbound"
        self.is_closed = False
        self._peerstore = PeerStore()

    @property
    def muxed_conn(self) -> Any:
        return Stream(b"").muxed_conn

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT

    def get_network(self) -> Host:
        return self

    def get_id(self) -> ID:
        return OWN

    def get_addrs(self) -> list[Multiaddr]:
        return [Multiaddr(f"{PUBLIC}/p2p/{OWN}")]

    def get_peerstore(self) -> PeerStore:
        return self._peerstore

    def get_connections(self, peer_id: ID) -> list[Any]:
        return [self] if self.connected and peer_id == PEER else []

    def _select_connection(self, connections: list[Any], peer_id: ID) -> Any:
        return connections[0]

    def set_stream_handler(self, protocol: str, handler: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        self.handlers.append(handler)

    async def new_stream(self, peer_id: ID, protocols: object) -> Stream:
        return self.stream

    async def dial(self, address: Multiaddr) -> Stream:
        self.dialled.append(str(address))
        return Stream(b"")

    async def dial_addr(self, address: Multiaddr, peer_id: ID, source: tuple[str, int]) -> None:
        self.dialled.append(str(address))
        self.connected = len(self.dialled) > 2

    dial_addr_as_responder = dial_addr

    async def _upgrade(self, raw: Any, initiator: bool, peer_id: ID) -> None:
        if len(self.dialled) % 2:
            raise NetworkError("somebody else")

    async def upgrade_inbound_raw_conn(self, raw: Any, address: Multiaddr) -> Any:
        while await raw.read(1000):
            pass
        return SimpleNamespace(peer_id=PEER)


class _Ear(logging.Handler):
    """Keeps the errors that a module logs."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.heard: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        self.heard += [each for each in arguments if isinstance(each, BaseException)]


@contextmanager
def nothing_hidden(module: Any, *expected: type[BaseException]) -> Iterator[None]:
    """Raises what the module caught and logged besides what a peer is expected to cause."""
    ear, log = _Ear(), module.log
    log.addHandler(ear)
    level, propagates = log.level, log.propagate
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(ear)
        log.setLevel(level)
        log.propagate = propagates
    for error in ear.heard:
        if not isinstance(error, (*NO_MESSAGE, EdgeError, *expected)):
            raise error


# --- AutoNAT


def read_dial_question(data: bytes) -> None:
    """Whoever asks is dialled at its own address only."""

    async def serve(said: bytes) -> None:
        stream = Stream(said)
        host = Host(stream)
        await DialBackServer(host)._serve(stream)
        assert stream.over
        assert all((end := ip_endpoint(each)) and end[0] == SOURCE for each in host.dialled)

    async def decide() -> None:
        stream = Stream(b"")
        await DialBackServer(Host(stream))._try(stream.muxed_conn, message)

    in_no_time(lambda: serve(data))
    in_no_time(lambda: serve(_framed(data)))
    # Once more where nothing is caught.
    message = AutoNat.FromString(data)
    in_no_time(decide)


def read_dial_answer(data: bytes) -> None:
    """What was not asked about is no answer."""

    async def work() -> None:
        for said in (data, _framed(data)):
            reached = await autonat.ask_to_dial_back(Host(Stream(said)), PEER, (PUBLIC, INSIDE))
            assert reached in (None, "", PUBLIC, INSIDE)

    with nothing_hidden(autonat, ValueError):
        in_no_time(work)


def _framed(data: bytes) -> bytes:
    from edgellm.p2p.varint import encode_varint

    return encode_varint(len(data)) + data


def _dials() -> list[bytes]:
    told = [
        Multiaddr(each).to_bytes() for each in (f"/ip4/{SOURCE}/tcp/4001", f"/ip4/{SOURCE}/tcp/9", INSIDE)
    ]
    peer = AutoNat.PeerInfo(id=PEER.to_bytes(), addrs=told)
    return [wire(AutoNat(type=AutoNat.DIAL, dial=AutoNat.Dial(peer=peer)))]


def _dialled() -> list[bytes]:
    reached = AutoNat.DialResponse(status=AutoNat.OK, addr=Multiaddr(PUBLIC).to_bytes())
    failed = AutoNat.DialResponse(status=AutoNat.E_DIAL_ERROR)
    return [wire(AutoNat(type=AutoNat.DIAL_RESPONSE, dialResponse=each)) for each in (reached, failed)]


# --- hole punching


def read_punch_addresses(data: bytes) -> None:
    for address in punchable(HolePunch.FromString(data).ObsAddrs):
        end = ip_endpoint(address)
        assert end is not None
        assert is_public(end[0])


def _punched(stream: Stream, work: Callable[[HolePuncher], Coroutine[Any, Any, object]]) -> None:
    host = Host(stream, connected=False)

    async def run() -> None:
        puncher = HolePuncher(host, lambda: 4001, (PUBLIC,))
        await work(puncher)
        assert stream.over
        assert not puncher._under_way
        assert all((end := ip_endpoint(each)) and is_public(end[0]) for each in host.dialled)

    with nothing_hidden(punch):
        in_no_time(run)


def read_punch_question(data: bytes) -> None:
    stream = Stream(data, relayed=True)
    _punched(stream, lambda puncher: puncher._answer(stream))


def read_punch_question_framed(data: bytes) -> None:
    read_punch_question(_framed(data) + prefixed(HolePunch(type=HolePunch.SYNC)))


def read_punch_answer(data: bytes) -> None:
    for said in (data, _framed(data)):
        _punched(Stream(said), lambda puncher: puncher._begin(PEER))


@cache
def _connects() -> tuple[HolePunch, ...]:
    told = [Multiaddr(each).to_bytes() for each in (PUBLIC, INSIDE, "/ip6/2001:4860::1/tcp/1")]
    return (HolePunch(type=HolePunch.CONNECT, ObsAddrs=told),)


# --- relays


def read_hop_question(data: bytes) -> None:
    """Nothing of a circuit is left in the books once its stream has ended."""
    for said in (data, _framed(data)):

        async def work(said: bytes = said) -> None:
            stream = Stream(said)
            host = Host(Stream(prefixed(_stopped())))
            ledger = Ledger(RelayLimits())
            ledger.reserve(str(PEER), SOURCE, trio.current_time())
            await relay_server.RelayServer(host, ledger)._serve(stream)
            assert stream.over
            assert not ledger._circuits

        with nothing_hidden(relay_server):
            in_no_time(work)


def read_stop_answer(data: bytes) -> None:
    async def work() -> None:
        ledger = Ledger(RelayLimits())
        ledger.reserve(str(PEER), SOURCE, trio.current_time())
        stream = Stream(prefixed(_hops()[1]))
        host = Host(Stream(data))
        await relay_server.RelayServer(host, ledger)._serve(stream)
        assert stream.over
        assert not ledger._circuits

    with nothing_hidden(relay_server):
        in_no_time(work)


def _relay(host: Host) -> relay.Relay:
    made = relay.Relay(host, SimpleNamespace())  # type: ignore[arg-type]
    made._reserved[f"{PUBLIC}/p2p/{PEER}"] = None
    return made


def read_hop_answer(data: bytes) -> None:
    async def work() -> None:
        stream = Stream(data)
        await _relay(Host(stream))._ask(str(PEER), _hops()[0], "refused")

    in_no_time(work)


def read_stop_question(data: bytes) -> None:
    async def work() -> None:
        stream = Stream(data)
        using = _relay(Host(stream))
        taken: list[ID] = []
        using.taken = taken.append
        await using._take(stream)
        assert stream.over or taken
        assert not using._incoming

    with nothing_hidden(relay):
        in_no_time(work)


def _hops() -> list[Any]:
    return [
        circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.RESERVE),
        circuit_pb2.HopMessage(
            type=circuit_pb2.HopMessage.CONNECT, peer=circuit_pb2.PeerId(id=PEER.to_bytes())
        ),
    ]


def _hop_answers() -> list[Any]:
    reservation = circuit_pb2.Reservation(expire=1_900_000_000, addrs=[Multiaddr(PUBLIC).to_bytes()])
    limit = circuit_pb2.Limit(duration=120, data=1 << 20)
    kind = circuit_pb2.HopMessage.STATUS
    return [
        circuit_pb2.HopMessage(type=kind, status=circuit_pb2.OK, reservation=reservation, limit=limit),
        circuit_pb2.HopMessage(type=kind, status=circuit_pb2.NO_RESERVATION),
    ]


def _stopped() -> Any:
    return circuit_pb2.StopMessage(type=circuit_pb2.StopMessage.STATUS, status=circuit_pb2.OK)


def _stops() -> list[Any]:
    peer = circuit_pb2.PeerId(id=PEER.to_bytes())
    return [circuit_pb2.StopMessage(type=circuit_pb2.StopMessage.CONNECT, peer=peer)]


# --- what others say of addresses


def read_identify(data: bytes) -> None:
    async def work() -> None:
        for said in (data, _framed(data)):
            await ask_how_seen(Host(Stream(said)), PEER)

    in_no_time(work)


def _sights() -> list[bytes]:
    seen = Multiaddr(PUBLIC).to_bytes()
    return [wire(Identify(observed_addr=seen, protocols=["/edgellm/lease/1"], listen_addrs=[seen]))]


def read_providers(data: bytes) -> None:
    async def work() -> None:
        for said in (data, _framed(data)):
            with patch.object(providers, "env_to_send_in_RPC", lambda host: (b"record", True)):
                answer = await providers.get_providers(
                    Host(Stream(said)),
                    PEER,
                    b"key",
                    "/edgellm/kad",
                    timeout_s=5,
                )
            if answer is not None:
                for each in answer.closer:
                    providers.distance(each, b"key")

    with nothing_hidden(providers):
        in_no_time(work)


def _kademlia() -> list[bytes]:
    told = [Multiaddr(PUBLIC).to_bytes()]
    peers = [Kademlia.Peer(id=PEER.to_bytes(), addrs=told), Kademlia.Peer(id=OWN.to_bytes(), addrs=told)]
    kind = Kademlia.MessageType.GET_PROVIDERS
    return [wire(Kademlia(type=kind, key=b"key", providerPeers=peers, closerPeers=peers))]


class _Datagrams:
    """A socket on which the router says the next of `answers`."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __enter__(self) -> _Datagrams:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def recv(self, most: int) -> bytes:
        return self._data[:most]

    def _nothing(self, *_: object) -> None:
        return None

    connect = settimeout = send = _nothing


def read_nat_pmp(data: bytes) -> None:
    with patch.object(socket, "socket", lambda *_: _Datagrams(data)):
        router = port_mapping._NatPmp("192.168.1.1", "198.51.100.1")
        port_mapping._nat_pmp(router.gateway, bytes((0, 0)), 12) if data[1:2] == b"\x80" else None
        router.add(4001)


DECODERS = (
    Decoder(
        "dial questions", read_dial_question, lambda: _dials() + list(map(_framed, _dials())), (DecodeError,)
    ),
    Decoder("dial answers", read_dial_answer, lambda: _dialled() + list(map(_framed, _dialled())), ()),
    Decoder(
        "punch addresses", read_punch_addresses, lambda: list(map(wire, _connects())), (DecodeError,), 0.5
    ),
    Decoder(
        "punch questions",
        read_punch_question,
        lambda: [prefixed(*_connects(), HolePunch(type=HolePunch.SYNC))],
        (),
    ),
    Decoder("punches framed", read_punch_question_framed, lambda: list(map(wire, _connects())), ()),
    Decoder("punch answers", read_punch_answer, lambda: list(map(wire, _connects())), ()),
    Decoder("relay questions", read_hop_question, lambda: list(map(wire, _hops())), ()),
    Decoder("relay answers", read_hop_answer, lambda: list(map(prefixed, _hop_answers()))),
    Decoder("circuit offers", read_stop_question, lambda: list(map(prefixed, _stops())), ()),
    Decoder("circuit answers", read_stop_answer, lambda: [prefixed(_stopped())], ()),
    Decoder("identify", read_identify, _sights, (), 0.5),
    Decoder("DHT answers", read_providers, _kademlia, ()),
    Decoder(
        "NAT-PMP",
        read_nat_pmp,
        lambda: [
            struct.pack("!BBHIHHI", 0, 130, 0, 7, 4001, 4001, 3600),
            struct.pack("!BBHI4s", 0, 128, 0, 7, bytes((198, 51, 100, 1))),
        ],
        (OSError,),
        0.3,
    ),
)
