"""What strangers try with a real node: floods, silence, lies in the DHT. Each is a real attempt over TCP."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

import psutil
import pytest
import trio
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from edgellm.errors import NetworkError
from edgellm.p2p.dht import PROTOCOL as KAD
from edgellm.p2p.dht import ProviderDirectory, _key_bytes
from edgellm.p2p.identity import Identity
from edgellm.p2p.known_peers import MAX_PEERS
from edgellm.p2p.limits import ConnectionLimits
from edgellm.p2p.network import Stream
from edgellm.p2p.node import LibP2PNetwork, NodeConfig, open_node

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
ECHO = "/edgellm/test/echo/1"
MIB = 1 << 20


def config(*bootstrap: str, server: bool = True, **changes: object) -> NodeConfig:
    made = NodeConfig(Identity.generate(), listen=LOOPBACK, bootstrap=bootstrap, dht_server=server)
    return replace(made, **changes)  # type: ignore[arg-type]


async def echo(stream: Stream) -> None:
    while chunk := await stream.receive_some():
        await stream.send_all(chunk)


async def assert_serves(network: LibP2PNetwork) -> None:
    """A new peer is served within seconds."""
    with trio.fail_after(10):
        async with open_node(config(network.addresses[0], server=False)) as good:
            stream = await good.open_stream(network.peer, ECHO)
            await stream.send_all(b"there")
            assert await stream.receive_some() == b"there"


def port(network: LibP2PNetwork) -> int:
    return int(network.addresses[0].split("/")[4])


def rss() -> int:
    return int(psutil.Process().memory_info().rss)


@asynccontextmanager
async def victim(**limits: object) -> AsyncIterator[LibP2PNetwork]:
    async with open_node(config(limits=ConnectionLimits(**limits))) as network:  # type: ignore[arg-type]
        network.serve(ECHO, echo)
        yield network


async def test_a_place_is_free_again_when_its_connection_has_ended() -> None:
    """py-libp2p keeps the place of each connection until the node ends."""
    async with victim(inbound=3) as network:
        for _ in range(8):
            await assert_serves(network)


async def test_connections_that_say_nothing_are_closed_and_shut_nobody_out() -> None:
    async with victim(pending=20, handshake_s=1.5) as network, AsyncExitStack() as stack:
        silent = []
        for _ in range(200):
            with suppress(OSError):
                silent.append(stack.enter_context(socket.create_connection(("127.0.0.1", port(network)), 2)))
            await trio.sleep(0)
        await trio.sleep(2.5)
        await assert_serves(network)
        for plain in silent:
            plain.setblocking(False)
        ended = 0
        for plain in silent:
            with suppress(BlockingIOError, OSError):
                while data := plain.recv(4096):
                    assert data
                ended += 1
        assert ended >= len(silent) - 2


async def test_a_handshake_of_one_byte_a_second_is_cut_off() -> None:
    async with victim(handshake_s=2.0) as network:
        async with await trio.open_tcp_stream("127.0.0.1", port(network)) as plain:
            hello = b"\x13/multistream/1.0.0\n\x07/noise\n"
            began = trio.current_time()
            with trio.fail_after(8), suppress(trio.BrokenResourceError):
                for byte in hello:
                    await plain.send_all(bytes([byte]))
                    await trio.sleep(0.5)
            assert trio.current_time() - began < 6
        await assert_serves(network)


async def test_one_peer_has_so_many_connections_and_no_more() -> None:
    identity = Identity.generate()
    async with victim(per_peer=3) as network, AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(
                open_node(NodeConfig(identity, LOOPBACK, bootstrap=(network.addresses[0],), dht_server=False))
            )
        await trio.sleep(0.5)
        assert len(network._dialer.connections(ID.from_base58(identity.peer))) <= 3
        await assert_serves(network)


@pytest.mark.parametrize(
    "protocol", [KAD, "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0", ECHO, ""]
)
@pytest.mark.parametrize("way", ["silent", "trickle", "never reads"])
async def test_slow_streams_hold_up_nobody(protocol: str, way: str) -> None:
    async with victim() as network, open_node(config(network.addresses[0], server=False)) as hostile:
        before = rss()
        peer = ID.from_base58(network.peer)
        (connection, *_) = hostile._dialer.connections(peer)
        async with trio.open_nursery() as nursery:

            async def hold() -> None:
                with suppress(Exception):
                    if protocol:
                        stream = await hostile.open_stream(network.peer, protocol)
                    else:
                        muxed = await connection.muxed_conn.open_stream()
                    while way != "silent":
                        data = b"x" if way == "trickle" else bytes(1 << 18)
                        await (stream.send_all(data) if protocol else muxed.write(data))
                        await trio.sleep(1 if way == "trickle" else 0)
                await trio.sleep_forever()

            for _ in range(150):
                nursery.start_soon(hold)
            await trio.sleep(1.5)
            await assert_serves(network)
            with trio.fail_after(10):
                async with open_node(config(network.addresses[0])) as good:
                    await good.provide("anything")
                    assert good.peer in {found.peer for found in await network.find_providers("anything")}
            # Of both: the attacker is in this process, too.
            assert rss() - before < 300 * MIB
            nursery.cancel_scope.cancel()


async def test_streams_left_half_open_are_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.p2p.muxer.LINGER_S", 0.5)

    async def one_answer(stream: Stream) -> None:
        await stream.send_all(b"done")

    async with victim() as network, open_node(config(network.addresses[0], server=False)) as hostile:
        network.serve("/edgellm/test/one/1", one_answer)
        streams = [await hostile.open_stream(network.peer, "/edgellm/test/one/1") for _ in range(40)]
        (connection, *_) = network._dialer.connections(ID.from_base58(hostile.peer))
        assert len(connection.muxed_conn.streams) > 30
        with trio.fail_after(15):
            while len(connection.muxed_conn.streams) >= 5:
                await trio.sleep(0.1)
        assert len(streams) == 40


async def test_what_a_peer_sends_into_streams_that_nobody_reads_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgellm.p2p.muxer.MAX_UNREAD_BYTES", 4 * MIB)

    async def deaf(stream: Stream) -> None:
        await trio.sleep_forever()

    async with victim() as network, open_node(config(network.addresses[0], server=False)) as hostile:
        network.serve("/edgellm/test/deaf/1", deaf)
        with trio.move_on_after(10):
            async with trio.open_nursery() as nursery:

                async def pour() -> None:
                    with suppress(NetworkError):
                        stream = await hostile.open_stream(network.peer, "/edgellm/test/deaf/1")
                        await stream.send_all(bytes(MIB))
                    nursery.cancel_scope.cancel()

                for _ in range(60):
                    nursery.start_soon(pour)
        await assert_serves(network)
        connections = network._dialer.connections(ID.from_base58(hostile.peer))
        unread = [sum(map(len, each.muxed_conn.stream_buffers.values())) for each in connections]
        assert sum(unread) <= 6 * MIB


async def test_a_thousand_invented_peers_do_not_take_a_node_its_own_keys() -> None:
    async with victim() as network, open_node(config(network.addresses[0])) as friend:
        store = network._host.get_peerstore()
        with trio.fail_after(15):
            while ID.from_base58(friend.peer) not in store.peers_with_addrs():
                await trio.sleep(0.05)
        for _ in range(3 * MAX_PEERS):
            store.add_addrs(ID(b"\x12\x20" + os.urandom(32)), [Multiaddr("/ip4/192.0.2.1/tcp/1")], 7200)
        assert len(store.peer_data_map) <= MAX_PEERS
        assert store.privkey(network._host.get_id()) is not None
        assert store.addrs(ID.from_base58(friend.peer))
        with pytest.raises(PeerStoreError):
            store.privkey(ID.from_base58(friend.peer))
        await assert_serves(network)


class Liar(ProviderDirectory):
    """A Sybil's DHT: takes announcements and forgets them, and names its accomplices as the providers of everything."""

    def __init__(self, host: object, *, server: bool, trusted: object = ()) -> None:
        super().__init__(host, server=server)
        store = self._dht.provider_store
        store.add_provider = lambda *_: None
        store.get_providers = lambda key: list(ACCOMPLICES.values())
        table = self._dht.routing_table
        table.find_local_closest_peers = (
            lambda key, count=20: [
                ID.from_base58(peer)
                for peer in ACCOMPLICES
                if peer != str(host.get_id())  # type: ignore[attr-defined]
            ][:count]
        )

    async def join(self, peers: Iterable[ID]) -> None:
        """Without a look around: it names all the others from memory, and fifty times fifty connections take minutes."""
        for peer in peers:
            await self._dht.routing_table.add_peer(peer)
            # Whoever asks is asked from then on.
            await self._dht.peer_routing._query_peer_for_closest(peer, self._host.get_id().to_bytes())


ACCOMPLICES: dict[str, object] = {}


def nearest_identities(key: str, count: int, tries: int) -> list[Identity]:
    """Of `tries` identities those whose place in the DHT is nearest to `key`."""
    target = int.from_bytes(hashlib.sha256(_key_bytes(key)).digest())

    def distance(identity: Identity) -> int:
        return target ^ int.from_bytes(hashlib.sha256(ID.from_base58(identity.peer).to_bytes()).digest())

    return sorted((Identity.generate() for _ in range(tries)), key=distance)[:count]


@pytest.mark.timeout(600)
async def test_fifty_sybils_around_a_models_key_do_not_hide_its_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are the fifty peers nearest to the key, take every record and give none back, and know only each other."""
    from libp2p.peer.peerinfo import PeerInfo

    from edgellm.p2p import node as node_module

    key = "/edgellm/model/1/" + hashlib.sha256(b"tiny").hexdigest()[:40]
    async with AsyncExitStack() as stack:
        meeting = await stack.enter_async_context(open_node(config()))
        monkeypatch.setattr(node_module, "ProviderDirectory", Liar)
        try:
            for identity in nearest_identities(key, 50, 4000):
                made = NodeConfig(identity, LOOPBACK, bootstrap=(meeting.addresses[0],))
                sybil = await stack.enter_async_context(open_node(made))
                ACCOMPLICES[sybil.peer] = PeerInfo(
                    ID.from_base58(sybil.peer), [Multiaddr(sybil.addresses[0].rpartition("/p2p/")[0])]
                )
        finally:
            monkeypatch.undo()
        with trio.fail_after(30):
            while len(ACCOMPLICES.keys() & set(map(str, meeting._directory.known()))) < 20:
                await trio.sleep(0.1)
        hosts = [await stack.enter_async_context(open_node(config(meeting.addresses[0]))) for _ in range(3)]
        for host in hosts:
            await host.provide(key)
        began = time.monotonic()
        async with open_node(config(meeting.addresses[0], server=False)) as requester:
            found = {provider.peer for provider in await requester.find_providers(key)}
        assert {host.peer for host in hosts} <= found
        assert time.monotonic() - began < 15
    ACCOMPLICES.clear()
