"""The libp2p node: one peer on the real network, from `open_node` to the end of its context.

TCP, Noise and Yamux only: libp2p's QUIC is slow in Python, and its list of other defaults begins with plain text.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import libp2p
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.security.noise import transport as noise
from multiaddr import Multiaddr

from edgellm.errors import DiscoveryError, EdgeError, NetworkError, ProtocolUnknown, UsageError
from edgellm.p2p import muxer, tcp
from edgellm.p2p.addresses import Advertisement, advertised, check_listen, split_peer
from edgellm.p2p.autonat import DialBackServer
from edgellm.p2p.connections import relay_of
from edgellm.p2p.dht import ProviderDirectory
from edgellm.p2p.dialer import Dialer
from edgellm.p2p.doorkeeper import Doorkeeper
from edgellm.p2p.gate import Gatekeeper
from edgellm.p2p.greeting import GuardedNoise
from edgellm.p2p.handlers import run_handler
from edgellm.p2p.identity import Identity
from edgellm.p2p.known_peers import bound_peerstore
from edgellm.p2p.limits import MAX_CONNECTIONS, ConnectionLimits, origin
from edgellm.p2p.mdns import on_local_network
from edgellm.p2p.nat import RELAYS_KEY, Reach
from edgellm.p2p.network import PeerAddress, StreamHandler
from edgellm.p2p.punch import HolePuncher, PunchPort
from edgellm.p2p.quiet import quiet_libp2p
from edgellm.p2p.relay import RENEW_INTERVAL_S, Relay
from edgellm.p2p.relay_limits import Ledger, RelayLimits, Standing, is_stranger
from edgellm.p2p.relay_server import RelayServer
from edgellm.p2p.shutdown import bounded, close_connections, cut_connections, unwrapped
from edgellm.p2p.stream_gate import ProtocolGate, all_streams
from edgellm.p2p.streams import LibP2PStream
from edgellm.p2p.watchdog import watch
from edgellm.types.member import Member

log = logging.getLogger(__name__)

GUARDED_UPGRADE_S = 3.0  # for all of a connection's handshakes, where strangers are not welcome
REJOIN_INTERVAL_S = 30.0
UPGRADE_WAIT_S = 2.5
"""How long a stream waits for a direct way to a peer that is connected through a relay only."""
MAX_LOCAL_PEERS = 32


@dataclass(frozen=True)
class NodeConfig:
    """What a node is to be.

    `listen`: TCP multiaddrs; port 0 takes a free one. `announce`: what to tell others instead of the machine's own
    addresses (a forwarded port). `bootstrap`: full addresses of peers, of which at least one must answer.
    `dht_server`: keep records for others (hosts) or only ask (requesters). `relays`: full addresses of peers to be
    reached through, for a machine that others cannot connect to. `serve_relay`: be such a relay, within `relay_limits`
    (what `relay_standing` says of a peer stands instead). `stay_reachable`: find out whether others can connect, and find
    relays when not; with `map_ports` ask the router for a port (and for `other_ports`) that leads here.
    `mdns`: announce this node on the local network and connect to others seen there. `limits`: for what others open here.
    `doorkeeper`: decides which peers this node has to do with; None: all.
    """

    identity: Identity
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    dht_server: bool = True
    bootstrap_timeout_s: float = 10.0
    relays: tuple[str, ...] = ()
    serve_relay: bool = False
    relay_limits: RelayLimits = field(default_factory=RelayLimits)
    relay_standing: Standing | None = None
    stay_reachable: bool = False
    map_ports: bool = False
    other_ports: tuple[int, ...] = ()
    mdns: bool = False
    doorkeeper: Doorkeeper | None = None
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)


class LibP2PNetwork:
    """This node's peer; what it promises is written at `edgellm.p2p.network.Network`."""

    def __init__(
        self,
        config: NodeConfig,
        host: Any,
        dialer: Dialer,
        directory: ProviderDirectory,
        puncher: HolePuncher,
        reach: Reach | None,
    ) -> None:
        self.identity = config.identity
        self._doorkeeper = config.doorkeeper
        self._bootstrap = config.bootstrap
        self._bootstrap_timeout_s = config.bootstrap_timeout_s
        self._host = host
        self._dialer = dialer
        self._directory = directory
        self._puncher = puncher
        self.reach = reach
        """None where this node does not care whether it can be reached."""

    @property
    def peer(self) -> str:
        return self.identity.peer

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(str(address) for address in self._host.get_addrs())

    async def open_stream(
        self, peer: str, protocol: str, *, addresses: Sequence[str] = (), timeout_s: float = 10.0
    ) -> LibP2PStream:
        with trio.move_on_after(timeout_s):
            for last in (False, True):
                await self._dialer.connect(peer, addresses, timeout_s=timeout_s)
                await self._settle(peer, timeout_s)
                try:
                    return LibP2PStream(
                        await self._host.new_stream(ID.from_base58(peer), [TProtocol(protocol)])
                    )
                except StreamFailure as error:
                    if self._dialer.connections(ID.from_base58(peer)):
                        raise ProtocolUnknown(f"peer {peer} does not speak {protocol}") from error
                    if last:
                        raise NetworkError(f"the connection to peer {peer} broke") from error
                except Exception as error:
                    if last:
                        raise NetworkError(f"cannot open a stream to peer {peer}: {error}") from error
        await self._distrust_relay(peer)
        raise NetworkError(f"peer {peer} did not answer within {timeout_s:g} s")

    async def _settle(self, peer: str, timeout_s: float) -> None:
        """Waits a moment for a direct way where there is only a relayed one: what begins there stays there."""
        peer_id = ID.from_base58(peer)
        if relay_of(self._host.get_network(), peer_id):
            await self._puncher.settled(peer_id, min(UPGRADE_WAIT_S, timeout_s / 2))

    async def _distrust_relay(self, peer: str) -> None:
        """Ends relayed connections to a peer that does not answer: it may be the relay that is silent."""
        swarm, peer_id = self._host.get_network(), ID.from_base58(peer)
        if relay_of(swarm, peer_id):
            for connection in self._dialer.connections(peer_id):
                with suppress(Exception), trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                    await connection.close()

    def mapped_port(self, port: int) -> tuple[str, int] | None:
        mappings = self.reach.mappings if self.reach is not None else ()
        return next(((each.host, each.port) for each in mappings if each.inside_port == port), None)

    def relay_of(self, peer: str) -> str:
        return relay_of(self._host.get_network(), ID.from_base58(peer))

    def origin_of(self, peer: str) -> str:
        """The network or address that `peer` connects from, as far as it tells peers apart; else the peer itself."""
        for connection in self._host.get_network().get_connections(ID.from_base58(peer)):
            if (remote := connection.muxed_conn.get_remote_address()) is not None:
                return origin(remote[0]).address or peer
        return peer

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        gate = ProtocolGate(protocol)

        async def handle(net_stream: Any) -> None:
            stream = LibP2PStream(net_stream)
            if not gate.admits(stream.peer):
                await stream.reset()
                return
            with gate.counts.one_of(stream.peer):
                await run_handler(protocol, handler, stream)

        self._host.set_stream_handler(TProtocol(protocol), handle)

    async def provide(self, key: str) -> None:
        await self._directory.provide(key)

    def withdraw(self, key: str) -> None:
        self._directory.withdraw(key)

    async def find_providers(self, key: str) -> tuple[PeerAddress, ...]:
        return await self._directory.find(key)

    async def connect(self, multiaddr: str, *, timeout_s: float = 10.0) -> str:
        address, peer = split_peer(multiaddr)
        await self._dialer.connect(peer, (address,), timeout_s=timeout_s, named=True)
        return peer

    def connected_peers(self) -> frozenset[str]:
        known = self._host.get_connected_peers()
        return frozenset(str(peer_id) for peer_id in known if self._dialer.connections(peer_id))

    def member(self, peer: str) -> Member | None:
        return self._doorkeeper.member(peer) if self._doorkeeper else None

    async def drop(self, peer: str) -> None:
        await cut_connections(self._dialer.connections(ID.from_base58(peer)))

    async def join(self) -> None:
        """Connects to the bootstrap peers and joins the DHT through those that answer.

        Raises DiscoveryError naming all of them when none does.
        """
        reached: list[ID] = []
        failures: list[str] = []

        async def reach(multiaddr: str) -> None:
            try:
                peer = await self.connect(multiaddr, timeout_s=self._bootstrap_timeout_s)
            except NetworkError as error:
                failures.append(f"{multiaddr} ({error})")
            else:
                reached.append(ID.from_base58(peer))

        async with trio.open_nursery() as nursery:
            for multiaddr in self._bootstrap:
                nursery.start_soon(reach, multiaddr)
        if self._bootstrap and not reached:
            raise DiscoveryError(
                f"no bootstrap peer answers: {'; '.join(failures)}",
                remedy="check the addresses, and that at least one of these peers runs, can be reached and is in this swarm",
            )
        await self._directory.join(reached)

    async def meet_local_peers(self) -> None:
        """Connects to peers of the local network as they are seen, up to `MAX_LOCAL_PEERS`."""
        key = self._doorkeeper.beacon_key if self._doorkeeper else None
        async with on_local_network(self.peer, self.addresses, key) as seen:
            async for multiaddr in seen:
                if len(self.connected_peers()) >= MAX_LOCAL_PEERS:
                    continue
                try:
                    peer = await self.connect(multiaddr)
                except EdgeError as error:
                    log.debug("a peer of the local network: %s", error)
                else:
                    await self._directory.join([ID.from_base58(peer)])

    async def stay_joined(self) -> None:
        """Joins again whenever this node has lost all of its connections."""
        while True:
            await trio.sleep(REJOIN_INTERVAL_S)
            if self._bootstrap and not self.connected_peers():
                try:
                    await self.join()
                except DiscoveryError as error:
                    log.warning("%s", error)


@asynccontextmanager
async def open_node(config: NodeConfig) -> AsyncIterator[LibP2PNetwork]:
    """A node that listens, has joined the DHT through its bootstrap peers, and ends with the context.

    Raises UsageError (port taken, bad address) and DiscoveryError (no bootstrap peer answers) at the start;
    NetworkError out of the body when the node stops serving.
    """
    quiet_libp2p()
    for multiaddr in (*config.bootstrap, *config.relays):
        split_peer(multiaddr)
    listen = check_listen(config.listen)
    advertisement = Advertisement(config.announce)
    host = _make_host(config, listen, advertisement)
    swarm = host.get_network()
    reach: Reach | None = None
    port = PunchPort(lambda: _listening_port(host))
    # Who is reached directly needs no hole in a router, and two that dial each other from these ports would collide.
    dialer = Dialer(host, lambda: 0 if reach is not None and reach.is_direct else port())
    relay = Relay(host, dialer, through=config.relays)
    advertisement.relayed = relay.addresses
    trusted = [ID.from_base58(split_peer(multiaddr)[1]) for multiaddr in config.bootstrap]
    directory = ProviderDirectory(host, server=config.dht_server, trusted=trusted)
    bound_peerstore(
        host.get_peerstore(),
        lambda: (host.get_id(), *host.get_connected_peers(), *trusted, *directory.known()),
    )
    puncher = HolePuncher(host, port, config.announce)
    if config.serve_relay:
        RelayServer(host, Ledger(config.relay_limits, config.relay_standing or is_stranger))
    if config.dht_server:
        DialBackServer(host)
    if config.stay_reachable:
        reach = Reach(
            host,
            dialer,
            relay,
            directory,
            advertisement,
            named=(*config.relays, *config.bootstrap),
            port=lambda: _listening_port(host),
            map_ports=config.map_ports and not config.announce,
            other_ports=config.other_ports,
        )
    network = LibP2PNetwork(config, host, dialer, directory, puncher, reach)

    def tasks_alive() -> bool:
        return bool(swarm.manager.is_running) and directory.running

    with closing(port), unwrapped(), bounded() as ending:
        async with host.run(listen), directory.run(), trio.open_nursery() as nursery:
            relay.taken = lambda peer_id: nursery.start_soon(puncher.upgrade, peer_id)
            relay.dialled = puncher.expect
            try:
                if len(swarm.listeners) < len(listen):
                    raise UsageError(f"cannot listen on {', '.join(config.listen)}")
                await relay.reserve()
                await network.join()
                if config.mdns:
                    nursery.start_soon(network.meet_local_peers)
                nursery.start_soon(network.stay_joined)
                nursery.start_soon(watch, tasks_alive, lambda: _reachable_listeners(host))
                if config.serve_relay:
                    nursery.start_soon(directory.provide, RELAYS_KEY)
                if reach is None and config.relays:
                    nursery.start_soon(_stay_reserved, relay)
                async with reach.run() if reach is not None else nullcontext():
                    yield network
            finally:
                ending()
                await close_connections(swarm)
            nursery.cancel_scope.cancel()


def _make_host(config: NodeConfig, listen: tuple[Multiaddr, ...], advertisement: Advertisement) -> Any:
    keys = create_new_key_pair(config.identity.seed)
    noise_keys = create_new_noise_key_pair()
    security = (
        GuardedNoise(config.doorkeeper, keys, noise_privkey=noise_keys.private_key)
        if config.doorkeeper
        else noise.Transport(keys, noise_privkey=noise_keys.private_key)
    )
    limits = config.limits
    if config.doorkeeper is not None:
        limits = replace(limits, handshake_s=min(limits.handshake_s, GUARDED_UPGRADE_S))
    swarm = libp2p.new_swarm(
        key_pair=keys,
        sec_opt={noise.PROTOCOL_ID: security},
        muxer_opt={TProtocol(muxer.PROTOCOL): muxer.HardenedYamux},
        listen_addrs=listen,
        transports=[tcp.transport()],
        retry_config=RetryConfig(max_retries=0),
        connection_config=ConnectionConfig(
            max_connections=MAX_CONNECTIONS,
            high_watermark=MAX_CONNECTIONS,
            low_watermark=0,
            min_connections=0,
            inbound_upgrade_timeout=limits.handshake_s,
        ),
    )
    # Why not its own: `edgellm.p2p.limits`.
    swarm.set_resource_manager(None)
    swarm._handle_inbound_connection = Gatekeeper(swarm, limits).accept
    # It dials half of `high_watermark` of all peers ever heard of, for ever.
    swarm.auto_connector.start = _do_nothing
    host = BasicHost(network=swarm, disable_identify_address_discovery=True)
    # Its own way to the advertised addresses cuts an address through a relay at the relay.
    host.get_addrs = lambda: [
        Multiaddr(f"{address}/p2p/{config.identity.peer}")
        for address in advertisement(host.get_transport_addrs())
    ]
    swarm.set_stream_handler(_guard(host._swarm_stream_handler))
    return host


def _guard(handle: Any) -> Any:
    """libp2p's own stream handler, so that nothing leaves it, no peer holds too many streams, and none stays half open."""
    streams = all_streams()

    async def guarded(net_stream: Any) -> None:
        peer = str(net_stream.muxed_conn.peer_id)
        if not streams.has_room(peer):
            await LibP2PStream(net_stream).reset()
            return
        with streams.one_of(peer):
            try:
                await handle(net_stream)
            except Exception:
                log.debug("a stream of peer %s failed", peer, exc_info=True)
                await LibP2PStream(net_stream).reset()
            else:
                await muxer.end(net_stream.muxed_stream)

    return guarded


async def _stay_reserved(relay: Relay) -> None:
    while True:
        await trio.sleep(RENEW_INTERVAL_S)
        await relay.renew()


def _listening_port(host: Any) -> int:
    """Of the first IPv4 address on which the node listens; 0 where it listens nowhere."""
    addresses = map(str, host.get_transport_addrs())
    return next((int(address.split("/")[4]) for address in addresses if address.startswith("/ip4/")), 0)


def _reachable_listeners(host: Any) -> list[tuple[str, int]]:
    return [
        (address.value_for_protocol("ip4"), int(address.value_for_protocol("tcp")))
        for address in advertised(host.get_transport_addrs())
        if str(address).startswith("/ip4/")
    ][:1]


async def _do_nothing() -> None:
    return None
