"""Provider records in a Kademlia DHT of our own, with the traps of py-libp2p 0.8.1 closed.

What is mended, and where:

* its protocol prefix is ignored, so nodes would join the public IPFS DHT: `_tune`
* records live 48 h: 20 min (`_tune`), announced again every few minutes (`run`)
* receivers silently drop the eleventh announcement within 10 s: `ProviderDirectory.__init__`
* a lookup answers from what it cached before, and renews the age of what it caches, so that a dead provider may
  stay listed for ever: `find` asks the network, keeps nothing, and lists everyone once
* lookups go in step with the slowest peer asked, 4 s for a dead one, and records go to peers that are gone:
  `edgellm.p2p.lookup` waits for nobody who is late, and records go to the closest that answer
* whoever asks is taken for a DHT server, so tables fill with requesters that are gone: `_admit`
* values of strangers would be stored (up to 50,000 of 1 MiB): none are
* a stream that says nothing keeps one of few places for ever: `_serve` gives each peer some, for some time
* provider records have no bounds that hold against many identities: `edgellm.p2p.provider_records`

What stands against peers that surround a key and name each other (eclipse): who provides it is told to, and asked of, the
bootstrap peers, which the user chose, and peers that are connected now; in swarms where not everyone holds every key it lies
under `SHARDS` names, each in another neighbourhood; and what one peer answers is only its share of the result.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import zip_longest
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.tools.anyio_service import background_trio_service

from edgellm.p2p.addresses import without_peer, written
from edgellm.p2p.limits import StreamLimits, origin
from edgellm.p2p.lookup import Answer, K, Looked, lookup
from edgellm.p2p.network import PeerAddress
from edgellm.p2p.pace import Rate
from edgellm.p2p.provider_records import PER_KEY, BoundedRecords
from edgellm.p2p.providers import MAX_ANSWER_BYTES, distance, get_providers
from edgellm.p2p.stream_gate import ProtocolGate

log = logging.getLogger(__name__)

PROTOCOL = TProtocol("/edgellm/kad/1.0.0")
PROVIDER_TTL_S = 1200
REPROVIDE_INTERVAL_S = 400.0  # two announcements may get lost before a record expires
SOON_AGAIN_S = 25.0  # after the first announcement; then twice as long each time, while few hold the record
EXPIRY_INTERVAL_S = 60.0
QUERY_TIMEOUT_S = 4.0
MAX_PROVIDERS = 1000
_ANNOUNCEMENTS_PER_10_S = 100
_INBOUND = StreamLimits(per_peer=8, total=64, rate=Rate(burst=400, per_s=40))
_INBOUND_S = 15.0  # a stream asks one thing, and says so at once
MAX_REQUEST_BYTES = 64 * 1024
LOOKUP_S = 12.0  # all of a lookup that finds nobody
NEIGHBOURS_S = 1.0  # what they have after a lookup has found somebody
SHARDS = 3  # names under which a key is announced, its own included
MAX_NEIGHBOURS = 32  # connected peers that are asked and told besides those nearest to a key
_IDENTIFY_S = 5.0
_FEW = 5  # peers in the routing table, with which whoever is connected is asked as well
_SENT_AT_ONCE = 10
_SAFE_HOLDERS = 10


def _tune() -> None:
    for module in (common, kad_dht, peer_routing, provider_store, value_store):
        module.PROTOCOL_ID = PROTOCOL
        module.QUERY_TIMEOUT = QUERY_TIMEOUT_S
    provider_store.PROVIDER_RECORD_EXPIRATION_INTERVAL = PROVIDER_TTL_S
    provider_store.BUCKET_SIZE = PER_KEY
    kad_dht.MAX_DHT_MESSAGE_SIZE = MAX_REQUEST_BYTES
    provider_store.MAX_DHT_MESSAGE_SIZE = peer_routing.MAX_DHT_MESSAGE_SIZE = MAX_ANSWER_BYTES


class ProviderDirectory:
    """Announces keys and finds who announced them, for one libp2p host.

    A server keeps records for others and is found by them; a client (short-lived requesters) only asks.
    """

    def __init__(self, host: Any, *, server: bool, trusted: Iterable[ID] = ()) -> None:
        """`trusted` are told what this node provides and asked what it looks for, wherever in the key space they are."""
        _tune()
        self._trusted = tuple(trusted)
        self._host = host
        self._dht = KadDHT(host, DHTMode.SERVER if server else DHTMode.CLIENT, strict_validation=True)
        self._dht._provider_rate_max = _ANNOUNCEMENTS_PER_10_S
        self._dht._inbound_limiter = trio.CapacityLimiter(_INBOUND.total)
        self._gate = ProtocolGate(PROTOCOL, limits=_INBOUND)
        self._dht.value_store.put_record = lambda *_, **__: None
        self._dht.add_peer = self._admit
        BoundedRecords(self._dht.provider_store, str(host.get_id()), self._network_of)
        if server:
            host.set_stream_handler(PROTOCOL, self._serve)
        self._announcing = trio.Lock()
        self._keys: set[str] = set()
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serves the DHT and keeps this node's announcements alive while the context is open."""
        async with background_trio_service(self._dht), trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._announce_again)
            nursery.start_soon(self._forget_expired)
            yield
            nursery.cancel_scope.cancel()

    @property
    def running(self) -> bool:
        """Whether the DHT's own tasks are alive."""
        return bool(self._dht.manager.is_running)

    def known(self) -> list[ID]:
        """The peers of the routing table."""
        return list(self._dht.routing_table.get_peer_ids())

    async def join(self, peers: Iterable[ID]) -> None:
        """Takes connected peers into the routing table; this node's neighbours are found in the background."""
        for peer in peers:
            await self._dht.routing_table.add_peer(peer)
        if self._nursery is not None:
            self._nursery.start_soon(self._dht.peer_routing.refresh_routing_table)

    async def provide(self, key: str) -> None:
        """Announces `key` now, and again while it is not withdrawn."""
        self._keys.add(key)
        await self._announce(key)

    def withdraw(self, key: str) -> None:
        """Announces `key` no longer, and forgets it here."""
        self._keys.discard(key)
        for shard in (key, *(f"{key}#{shard}" for shard in range(1, SHARDS))):
            records = self._dht.provider_store.providers.get(_key_bytes(shard), {})
            records.pop(str(self._host.get_id()), None)

    def announce_soon(self) -> None:
        """Announces all keys again now, as this node's addresses are others."""
        if self._nursery is not None and self._keys:
            self._nursery.start_soon(self._announce_all)

    async def find(self, key: str) -> tuple[PeerAddress, ...]:
        """Who announced `key` within the last 20 min, each once, as the network says now."""
        answers: list[dict[str, PeerAddress]] = []

        def told(infos: Iterable[Any]) -> None:
            if said := _addresses(infos):
                answers.append(said)

        with trio.move_on_after(LOOKUP_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_neighbours, _key_bytes(key), told)
                async with trio.open_nursery() as lookups:
                    for name in self._names(key):
                        lookups.start_soon(self._look_up, _key_bytes(name), told)
                if answers:
                    nursery.cancel_scope.deadline = trio.current_time() + NEIGHBOURS_S
        own = _addresses(self._dht.provider_store.get_providers(_key_bytes(key)))
        return _interleaved([own, *answers])

    async def _ask_neighbours(self, raw_key: bytes, on_found: Callable[[Iterable[Any]], None]) -> None:
        async def ask(peer: ID) -> None:
            answer = await get_providers(self._host, peer, raw_key, PROTOCOL, timeout_s=QUERY_TIMEOUT_S)
            if answer is not None:
                on_found(answer.found)

        async with trio.open_nursery() as nursery:
            for peer in self._neighbours():
                nursery.start_soon(ask, peer)

    async def _look_up(
        self, raw_key: bytes, on_found: Callable[[Iterable[Any]], None], *, patient: bool = False
    ) -> Looked[ID]:
        table = self._dht.routing_table
        start = set(table.find_local_closest_peers(raw_key, K))
        if len(start) < _FEW:
            start.update(self._host.get_connected_peers())
        start.discard(self._host.get_id())

        async def ask(peer: ID) -> Answer[ID, PeerInfo] | None:
            answer = await get_providers(self._host, peer, raw_key, PROTOCOL, timeout_s=QUERY_TIMEOUT_S)
            if answer is None and not self._host.get_network().get_connections(peer):
                # Others ask this node who is close, and should not be sent to those that are gone.
                table.remove_peer(peer)
            return answer

        if self._nursery is None:
            return Looked((), 0, 0)
        return await lookup(
            self._nursery, start, ask, lambda peer: distance(peer, raw_key), on_found, patient=patient
        )

    def _neighbours(self) -> list[ID]:
        """Peers to tell and ask whatever the key: the trusted ones, and some that are connected and serve the DHT."""
        connected = [peer for peer in self._host.get_connected_peers() if PROTOCOL in self._protocols(peer)]
        random.shuffle(connected)
        return list(dict.fromkeys((*self._trusted, *connected[:MAX_NEIGHBOURS])))

    def _names(self, key: str) -> list[str]:
        """The names under which `key` is announced and looked for."""
        everyone_holds_all = len(self.known()) <= K
        return [key] if everyone_holds_all else [key, *(f"{key}#{shard}" for shard in range(1, SHARDS))]

    async def _serve(self, stream: Any) -> None:
        """libp2p's handler, for a while and for so many streams of a peer at once."""
        peer = str(stream.muxed_conn.peer_id)
        if not self._gate.admits(peer):
            await stream.reset()
            return
        with self._gate.counts.one_of(peer), trio.move_on_after(_INBOUND_S) as deadline:
            await self._dht.handle_stream(stream)
        if deadline.cancelled_caught:
            with trio.move_on_after(1):
                await stream.reset()

    def _network_of(self, peer: str) -> str:
        """The network that a connected peer comes from; empty where networks are not counted."""
        for connection in self._host.get_network().get_connections(ID.from_base58(peer)):
            remote = connection.muxed_conn.get_remote_address()
            if remote is not None:
                return origin(remote[0]).network
        return ""

    async def _announce(self, key: str) -> int:
        """Returns how many peers were told."""
        told = [await self._announce_name(_key_bytes(name)) for name in self._names(key)]
        if key not in self._keys:
            self.withdraw(key)
        return min(told)

    async def _announce_name(self, raw_key: bytes) -> int:
        async with self._announcing:  # one at a time: receivers limit how many come from one sender
            store = self._dht.provider_store
            store.add_provider(raw_key, PeerInfo(self._host.get_id(), list(self._host.get_addrs())))
            # libp2p's own way sends it to the closest that it has heard of, of which many may be gone.
            looked = await self._look_up(raw_key, lambda infos: None, patient=True)
            sending = trio.CapacityLimiter(_SENT_AT_ONCE)
            told = 0

            async def send(peer: ID) -> None:
                nonlocal told
                async with sending:
                    with trio.move_on_after(QUERY_TIMEOUT_S):
                        told += await store._send_add_provider(peer, raw_key)

            async with trio.open_nursery() as nursery:
                for peer in dict.fromkeys((*looked.closest, *self._neighbours())):
                    nursery.start_soon(send, peer)
        return told

    async def _announce_again(self) -> None:
        interval_s = SOON_AGAIN_S
        while True:
            await trio.sleep(interval_s)
            told = await self._announce_all()
            # A record that few hold goes with them, and one who has just come knows few.
            is_safe = bool(told) and min(told) >= _SAFE_HOLDERS
            interval_s = REPROVIDE_INTERVAL_S if is_safe else min(2 * interval_s, REPROVIDE_INTERVAL_S)

    async def _announce_all(self) -> list[int]:
        """How many peers were told of each key."""
        return [await self._announce(key) for key in tuple(self._keys)]

    async def _forget_expired(self) -> None:
        while True:
            await trio.sleep(EXPIRY_INTERVAL_S)
            self._dht.provider_store.cleanup_expired()

    async def _admit(self, peer: ID, *, skip_server_mode_check: bool = False) -> bool:
        if self._nursery is not None:
            self._nursery.start_soon(self._admit_server, peer)
        return True

    async def _admit_server(self, peer: ID) -> None:
        """Takes `peer` into the routing table once identify says that it serves the DHT."""
        with trio.move_on_after(_IDENTIFY_S):
            while not (protocols := self._protocols(peer)):
                await trio.sleep(0.1)
            if PROTOCOL in protocols:
                await self._dht.routing_table.add_peer(peer)

    def _protocols(self, peer: ID) -> list[str]:
        store = self._host.get_peerstore()
        return list(store.get_protocols(peer)) if store.has_peer(peer) else []


def _addresses(infos: Iterable[Any]) -> dict[str, PeerAddress]:
    found = {}
    for info in infos:
        addresses = dict.fromkeys(map(without_peer, written(info.addrs)))
        found[str(info.peer_id)] = PeerAddress(str(info.peer_id), tuple(addresses))
    return found


def _interleaved(answers: Sequence[Mapping[str, PeerAddress]]) -> tuple[PeerAddress, ...]:
    """`MAX_PROVIDERS` of what all said, in turns, so that nobody's answer crowds out another's; each provider once."""
    found: dict[str, PeerAddress] = {}
    for turn in zip_longest(*(list(answer.values()) for answer in answers)):
        for provider in turn:
            if provider is not None and len(found) < MAX_PROVIDERS:
                found.setdefault(provider.peer, provider)
    return tuple(found.values())


def _key_bytes(key: str) -> bytes:
    """The SHA-256 multihash of `key`: the DHT routes by multihashes, and takes no key over 80 bytes."""
    return b"\x12\x20" + hashlib.sha256(key.encode()).digest()
