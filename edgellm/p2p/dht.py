"""Provider records in a Kademlia DHT of our own, with the traps of py-libp2p 0.8.1 closed.

What is mended, and where:

* its protocol prefix is ignored, so nodes would join the public IPFS DHT: `_tune`
* records live 48 h, 20 per key, first come: 20 min and 200 (`_tune`), announced again every few minutes (`run`)
* receivers silently drop the eleventh announcement within 10 s: `ProviderDirectory.__init__`
* a lookup answers from what it cached before, and renews the age of what it caches, so that a dead provider may
  stay listed for ever: `find` asks the network, keeps nothing, and lists everyone once
* whoever asks is taken for a DHT server, so tables fill with requesters that are gone: `_admit`
* values of strangers would be stored (up to 50,000 of 1 MiB): none are
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service

from edgellm.p2p.addresses import without_peer, written
from edgellm.p2p.network import PeerAddress

log = logging.getLogger(__name__)

PROTOCOL = TProtocol("/edgellm/kad/1.0.0")
PROVIDER_TTL_S = 1200
PROVIDERS_PER_KEY = 200
REPROVIDE_INTERVAL_S = 400.0  # two announcements may get lost before a record expires
EXPIRY_INTERVAL_S = 60.0
QUERY_TIMEOUT_S = 4.0
STRAGGLERS_S = 1.5  # how long a lookup that has found someone waits for slower answers
MAX_PROVIDERS = 1000
ASKED_AT_ONCE = 20  # k, the number of peers that hold a record
_ANNOUNCEMENTS_PER_10_S = 100
_INBOUND_STREAMS = 64
_IDENTIFY_S = 5.0


def _tune() -> None:
    for module in (common, kad_dht, peer_routing, provider_store, value_store):
        module.PROTOCOL_ID = PROTOCOL
        module.QUERY_TIMEOUT = QUERY_TIMEOUT_S
    provider_store.PROVIDER_RECORD_EXPIRATION_INTERVAL = PROVIDER_TTL_S
    provider_store.BUCKET_SIZE = PROVIDERS_PER_KEY


class ProviderDirectory:
    """Announces keys and finds who announced them, for one libp2p host.

    A server keeps records for others and is found by them; a client (short-lived requesters) only asks.
    """

    def __init__(self, host: Any, *, server: bool) -> None:
        _tune()
        self._host = host
        self._dht = KadDHT(host, DHTMode.SERVER if server else DHTMode.CLIENT, strict_validation=True)
        self._dht._provider_rate_max = _ANNOUNCEMENTS_PER_10_S
        self._dht._inbound_limiter = trio.CapacityLimiter(_INBOUND_STREAMS)
        self._dht.value_store.put_record = lambda *_, **__: None
        self._dht.add_peer = self._admit
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
        records = self._dht.provider_store.providers.get(_key_bytes(key), {})
        records.pop(str(self._host.get_id()), None)

    def announce_soon(self) -> None:
        """Announces all keys again now, as this node's addresses are others."""
        if self._nursery is not None and self._keys:
            self._nursery.start_soon(self._announce_all)

    async def find(self, key: str) -> tuple[PeerAddress, ...]:
        """Who announced `key` within the last 20 min, each once, as the network says now."""
        raw_key = _key_bytes(key)
        found: dict[str, PeerAddress] = {}
        asked = {self._host.get_id()}
        self._collect(found, self._dht.provider_store.get_providers(raw_key))
        async with trio.open_nursery() as nursery:

            async def ask(peer: ID) -> None:
                with trio.move_on_after(QUERY_TIMEOUT_S):
                    answer = await self._dht.provider_store._get_providers_from_peer_with_closers(
                        peer, raw_key
                    )
                    self._collect(found, answer[0])
                    if found:
                        latest = trio.current_time() + STRAGGLERS_S
                        nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, latest)

            def ask_all(peers: Iterable[ID]) -> None:
                for peer in peers:
                    if peer not in asked:
                        asked.add(peer)
                        nursery.start_soon(ask, peer)

            # Those known already answer while the search for closer ones runs, which one dead peer can slow down.
            ask_all(self._dht.routing_table.find_local_closest_peers(raw_key, ASKED_AT_ONCE))
            ask_all(await self._dht.peer_routing.find_closest_peers_network(raw_key))
        return tuple(found.values())

    def _collect(self, found: dict[str, PeerAddress], infos: Iterable[Any]) -> None:
        for info in infos:
            peer = str(info.peer_id)
            if peer not in found and len(found) < MAX_PROVIDERS:
                addresses = dict.fromkeys(map(without_peer, written(info.addrs)))
                found[peer] = PeerAddress(peer, tuple(addresses))

    async def _announce(self, key: str) -> None:
        raw_key = _key_bytes(key)
        async with self._announcing:  # one at a time: receivers limit how many come from one sender
            await self._dht.provider_store.provide(raw_key)
        # libp2p would announce it again too, every 22 h and whether withdrawn or not.
        self._dht.provider_store.providing_keys.discard(raw_key)
        if key not in self._keys:
            self.withdraw(key)

    async def _announce_again(self) -> None:
        while True:
            await trio.sleep(REPROVIDE_INTERVAL_S)
            await self._announce_all()

    async def _announce_all(self) -> None:
        for key in tuple(self._keys):
            await self._announce(key)

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


def _key_bytes(key: str) -> bytes:
    """The SHA-256 multihash of `key`: the DHT routes by multihashes, and takes no key over 80 bytes."""
    return b"\x12\x20" + hashlib.sha256(key.encode()).digest()
