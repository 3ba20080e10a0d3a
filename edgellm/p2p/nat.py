"""Which way this node is reached, found out again and again, and what follows from it: relays found or left, ports mapped.

What is decided from what others say is in `reachability`; this asks them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID as HOP
from multiaddr import Multiaddr

from edgellm.errors import EdgeError
from edgellm.p2p.addresses import Advertisement, ip_endpoint, is_loopback, is_public, split_peer
from edgellm.p2p.autonat import AUTONAT, REST_S, ask_to_dial_back
from edgellm.p2p.connections import direct_connections
from edgellm.p2p.dht import ProviderDirectory
from edgellm.p2p.dialer import Dialer
from edgellm.p2p.identify import ask_how_seen
from edgellm.p2p.port_mapping import PortMapper, default_gateway
from edgellm.p2p.reachability import DialBack, Mapping, Seen, Verdict, candidates, verdict
from edgellm.p2p.relay import RENEW_INTERVAL_S, WANTED, Relay

log = logging.getLogger(__name__)

RELAYS_KEY = "/edgellm/relays/1"
"""Relays announce themselves under this key in the DHT."""
ASKED = 6
"""Peers that are asked in a round."""
FIRST_ROUND_S = 8.0
"""How long a node that starts waits for what others say."""
SOON_S = REST_S + 1.0
"""Until the next round, while nobody could say, or somebody rests after the last question; twice as long each time."""
ROUND_S = RENEW_INTERVAL_S
LOOK_S = 2.0
FIND_TIMEOUT_S = 10.0
MAX_RELAYS_TRIED = 8
_ROUTER_S = 3.0


class Reach:
    """Keeps a node that others shall reach reachable. `verdict` is what is known now."""

    def __init__(
        self,
        host: Any,
        dialer: Dialer,
        relay: Relay,
        directory: ProviderDirectory,
        advertisement: Advertisement,
        *,
        named: Sequence[str],
        port: Callable[[], int],
        map_ports: bool,
        other_ports: Sequence[int] = (),
    ) -> None:
        """`named`: full addresses of peers that its owner named; `port`: where it listens."""
        self._host = host
        self._dialer = dialer
        self._relay = relay
        self._directory = directory
        self._advertisement = advertisement
        self._named = tuple(named)
        self._port = port
        self._map_ports = map_ports
        self._other_ports = tuple(other_ports)
        self._mapper: PortMapper | None = None
        self._backs: dict[str, DialBack] = {}
        self._unanswered = False
        self._advertised: list[Multiaddr] = []
        self.verdict = Verdict("unknown", "no peer has tried yet to connect to this machine")
        self.known = trio.Event()
        """Set once a first round is over."""
        self.on_change: Callable[[Verdict], None] = lambda verdict: None
        advertisement.confirmed = self._confirmed

    @property
    def is_direct(self) -> bool:
        """Whether others connect to this node directly, as far as is known."""
        return self.verdict.way in ("direct", "mapped")

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        return self._mapper.mappings if self._mapper is not None else ()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Finds out while the context is open; begins with what is known after a first round, or `FIRST_ROUND_S`."""
        async with trio.open_nursery() as nursery, self._mapping():
            nursery.start_soon(self._rounds)
            with trio.move_on_after(FIRST_ROUND_S):
                await self.known.wait()
            yield
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def _mapping(self) -> AsyncIterator[None]:
        own = [ip_endpoint(str(each)) for each in self._advertisement.own(self._host.get_transport_addrs())]
        # Who listens on loopback only wants nobody else; who has a public address needs no router's.
        pointless = all(is_loopback(each[0]) for each in own if each) or any(
            is_public(each[0]) for each in own if each
        )
        if not self._map_ports or not self._port() or pointless or default_gateway() is None:
            yield
            return
        self._mapper = PortMapper((self._port(), *self._other_ports))
        async with self._mapper.run():
            yield

    async def _rounds(self) -> None:
        hurried = 0
        while True:
            try:
                await self._round(first=not self.known.is_set())
            except EdgeError as error:
                log.info("how this node is reached: %s", error)
            self.known.set()
            unknown = self.verdict.way == "unknown" and bool(self._servers())
            hurried = min(hurried + 1, 8) if unknown or self._unanswered else 0
            await self._until_news(min(ROUND_S, SOON_S * 2 ** (hurried - 1)) if hurried else ROUND_S)

    async def _until_news(self, timeout_s: float) -> None:
        """Returns early when a relay is gone, and when it turns out whether the router maps ports."""
        waits_for_router = self._mapper is not None and not self._mapper.tried.is_set()
        with trio.move_on_after(timeout_s):
            while not self._relay.lost():
                await trio.sleep(LOOK_S)
                if waits_for_router and self._mapper is not None and self._mapper.tried.is_set():
                    return

    async def _round(self, *, first: bool) -> None:
        if first and self._mapper is not None:
            with trio.move_on_after(_ROUTER_S):
                await self._mapper.tried.wait()
        if not first:
            await self._relay.renew()
        seen = await self._how_seen()
        await self._ask_back(seen)
        self._judge()
        if self.verdict.needs_relay or (self.verdict.way == "unknown" and self._relay.peers()):
            if await self._relay.reserve_at_some(await self._relays(seen)):
                self._judge()
        elif self.is_direct:
            self._relay.leave()
        await self._tell()

    def _servers(self) -> list[ID]:
        """Whom to ask: peers with direct connections, those that the owner named first."""
        named = {split_peer(address)[1] for address in self._named}
        connected = [peer for peer in tuple(self._swarm.connections) if direct_connections(self._swarm, peer)]
        return sorted(connected, key=lambda peer: str(peer) not in named)[:ASKED]

    @property
    def _swarm(self) -> Any:
        return self._host.get_network()

    async def _how_seen(self) -> list[Seen]:
        seen: list[Seen] = []

        async def ask(peer: ID) -> None:
            sight = await ask_how_seen(self._host, peer)
            if sight is not None:
                seen.append(sight)

        async with trio.open_nursery() as nursery:
            for peer in self._servers():
                nursery.start_soon(ask, peer)
        return seen

    async def _ask_back(self, seen: Sequence[Seen]) -> None:
        named = {split_peer(address)[1] for address in self._named}
        own = [str(address) for address in self._advertisement.own(self._host.get_transport_addrs())]
        port = self._port()
        if not port:
            return
        backs: dict[str, DialBack] = {}
        self._unanswered = False

        async def ask(sight: Seen) -> None:
            # All that anybody saw: a peer tries only those at the address under which it sees this node.
            addresses = candidates(own, [sight, *seen], self.mappings, port)
            reached = await ask_to_dial_back(self._host, ID.from_base58(sight.peer), addresses)
            if reached is not None:
                backs[sight.peer] = DialBack(sight.peer, sight.host, sight.peer in named, reached)
            else:
                self._unanswered = True
                if sight.peer in self._backs:
                    backs[sight.peer] = self._backs[sight.peer]

        async with trio.open_nursery() as nursery:
            for sight in seen:
                if AUTONAT in sight.protocols:
                    nursery.start_soon(ask, sight)
        self._backs = backs

    def _judge(self) -> None:
        judged = verdict(
            tuple(self._backs.values()),
            self.mappings,
            relays=self._relay.peers(),
            announced=self._advertisement.announced,
        )
        changed = judged != self.verdict
        self.verdict = judged
        if changed:
            log.info("reached: %s, %s", judged.way, judged.why)
            self.on_change(judged)

    async def _tell(self) -> None:
        """Announces again in the DHT where the addresses are others now."""
        now = self._advertisement(self._host.get_transport_addrs())
        if now != self._advertised:
            self._advertised = now
            self._directory.announce_soon()

    async def _relays(self, seen: Sequence[Seen]) -> list[str]:
        """Relays to try: named by the owner, connected, or announced in the DHT; full addresses."""
        known = {split_peer(address)[1]: address for address in self._named}
        found = []
        for sight in seen:
            if HOP in sight.protocols:
                found.append(known.get(sight.peer) or self._address_of(sight.peer))
        if len([address for address in found if address]) + len(self._relay.peers()) < WANTED:
            with trio.move_on_after(FIND_TIMEOUT_S):
                for provider in await self._directory.find(RELAYS_KEY):
                    direct = [each for each in provider.addresses if ip_endpoint(each)]
                    if provider.peer != str(self._host.get_id()):
                        found += [f"{address}/p2p/{provider.peer}" for address in direct[:2]]
        return list(dict.fromkeys(filter(None, found)))[:MAX_RELAYS_TRIED]

    def _address_of(self, peer: str) -> str:
        """Where a connected peer is connected, if this node dialled it; "" else."""
        for connection in direct_connections(self._swarm, ID.from_base58(peer)):
            remote = connection.muxed_conn.get_remote_address()
            if connection.direction == "outbound" and remote:
                return f"/ip{6 if ':' in remote[0] else 4}/{remote[0]}/tcp/{remote[1]}/p2p/{peer}"
        return ""

    def _confirmed(self) -> list[Multiaddr]:
        # At loopback it is reached by peers on this machine only.
        return [
            Multiaddr(address)
            for address in self.verdict.addresses
            if (endpoint := ip_endpoint(address)) and not is_loopback(endpoint[0])
        ]
