"""The real libp2p node on loopback: peers in this process and in others, well-behaved and not."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import trio
from libp2p.peer.id import ID

from edgellm.errors import DiscoveryError, NetworkError, UsageError
from edgellm.p2p import node as node_module
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import Stream
from edgellm.p2p.node import LibP2PNetwork, NodeConfig, open_node
from edgellm.p2p.varint import encode_varint
from edgellm.wire.envelope_pb2 import Envelope

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
ECHO = "/edgellm/test/echo/1"
PEER_PROGRAM = Path(__file__).with_name("p2p_peer.py")


@dataclass
class Peer:
    process: subprocess.Popen[str]
    peer: str
    address: str

    @property
    def port(self) -> int:
        return int(self.address.split("/")[4])


class Ahead:
    """Peers' processes that have imported all they need, which takes a second each, and wait to be told what to do."""

    def __init__(self, number: int) -> None:
        self._waiting = deque(self._start() for _ in range(number))

    def take(self, *arguments: str) -> subprocess.Popen[str]:
        """One of them, told; another one takes its place."""
        process = self._waiting.popleft()
        self._waiting.append(self._start())
        assert process.stdin is not None
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
        return process

    def close(self) -> None:
        for process in self._waiting:
            process.kill()
            process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(PEER_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


class Spawner:
    def __init__(self, ahead: Ahead) -> None:
        self.peers: list[Peer] = []
        self._ahead = ahead

    def __call__(self, *arguments: str) -> Peer:
        process = self._ahead.take(*arguments)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate()[1])
        self.peers.append(Peer(process, **json.loads(line)))
        return self.peers[-1]

    def close(self) -> None:
        for peer in self.peers:
            peer.process.kill()
            peer.process.communicate()


@pytest.fixture(scope="module")
def ahead() -> Iterator[Ahead]:
    ahead = Ahead(4)
    yield ahead
    ahead.close()


@pytest.fixture
def spawn(ahead: Ahead) -> Iterator[Spawner]:
    spawner = Spawner(ahead)
    yield spawner
    spawner.close()


def config(*bootstrap: str, server: bool = True) -> NodeConfig:
    return NodeConfig(Identity.generate(), listen=LOOPBACK, bootstrap=bootstrap, dht_server=server)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def echo(stream: Stream) -> None:
    while chunk := await stream.receive_some():
        await stream.send_all(chunk)


async def receive_exactly(stream: Stream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        chunk = await stream.receive_some()
        assert chunk, f"ended after {len(received)} of {size} bytes"
        received += chunk
    return bytes(received)


async def assert_ended(stream: Stream) -> None:
    """A stream whose peer is gone ends or breaks; which of both depends on who notices first."""
    with suppress(NetworkError):
        assert await stream.receive_some() == b""


async def assert_serves(network: LibP2PNetwork, peer: Peer) -> None:
    stream = await network.open_stream(peer.peer, ECHO, addresses=[peer.address], timeout_s=5)
    await stream.send_all(b"hello")
    with trio.fail_after(5):
        assert await receive_exactly(stream, 5) == b"hello"
    await stream.aclose()
    assert peer.process.poll() is None


async def test_streams_carry_bytes_both_ways_to_the_proven_peer():
    seen: list[str] = []

    async def handler(stream: Stream) -> None:
        seen.append(stream.peer)
        await echo(stream)

    data = os.urandom(3_000_000)
    async with open_node(config()) as a, open_node(config()) as b:
        b.serve(ECHO, handler)
        assert await a.connect(b.addresses[0]) == b.peer

        async def exchange() -> None:
            stream = await a.open_stream(b.peer, ECHO)
            assert stream.peer == b.peer
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, data)
                assert await receive_exactly(stream, len(data)) == data
            await stream.aclose()
            assert await stream.receive_some() == b""

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(exchange)
        assert seen == [a.peer] * 5
        assert a.connected_peers() == {b.peer}
        assert b.connected_peers() == {a.peer}


async def test_providers_are_found_once_each_by_servers_and_clients():
    async with AsyncExitStack() as stack:
        bootstrap = await stack.enter_async_context(open_node(config()))
        servers = [
            await stack.enter_async_context(open_node(config(bootstrap.addresses[0]))) for _ in range(4)
        ]
        for server in servers[:3]:
            await server.provide("model")
        client = await stack.enter_async_context(open_node(config(bootstrap.addresses[0], server=False)))
        expected = {server.peer: server for server in servers[:3]}
        for network in (client, bootstrap, servers[3], servers[0]):
            found = await network.find_providers("model")
            assert sorted(provider.peer for provider in found) == sorted(expected)
            for provider in found:
                full = {f"{address}/p2p/{provider.peer}" for address in provider.addresses}
                assert full == set(expected[provider.peer].addresses)
        assert await client.find_providers("another") == ()
        servers[0].serve(ECHO, echo)
        found = await client.find_providers("model")
        address = next(each for each in found if each.peer == servers[0].peer)
        await client.open_stream(address.peer, ECHO, addresses=address.addresses)


async def test_frozen_peers_do_not_hold_up_a_lookup_for_long(spawn):
    bootstrap = spawn("--provide", "model")
    others = [spawn("--bootstrap", bootstrap.address, "--provide", "model") for _ in range(3)]
    for other in others:
        other.process.send_signal(signal.SIGSTOP)
    started = trio.current_time()
    async with open_node(config(bootstrap.address, server=False)) as network:
        found = await network.find_providers("model")
        assert {provider.peer for provider in found} == {peer.peer for peer in (bootstrap, *others)}
    assert trio.current_time() - started < 5


async def test_a_burst_of_announcements_arrives_whole():
    """py-libp2p's receivers drop the eleventh within 10 s and the sender is not told."""
    async with open_node(config()) as a, open_node(config(a.addresses[0])) as b:
        for number in range(30):
            await b.provide(f"key-{number}")
        for number in range(30):
            assert [found.peer for found in await a.find_providers(f"key-{number}")] == [b.peer]


async def test_a_record_that_few_hold_is_announced_again_soon(monkeypatch):
    monkeypatch.setattr("edgellm.p2p.dht.SOON_AGAIN_S", 0.5)
    async with open_node(config()) as first:
        # There is nobody yet who could hold it.
        await first.provide("model")
        async with open_node(config(first.addresses[0])) as later:
            store = later._directory._dht.provider_store
            with trio.fail_after(15):
                while not any(store.get_providers(key) for key in tuple(store.providers)):
                    await trio.sleep(0.1)


async def test_a_lookup_does_not_renew_the_records_of_others(monkeypatch):
    """A dead provider must vanish, however often it is looked up."""
    monkeypatch.setattr("edgellm.p2p.dht.PROVIDER_TTL_S", 3)
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(open_node(config()))
        b = await stack.enter_async_context(open_node(config(a.addresses[0])))
        async with open_node(config(a.addresses[0])) as provider:
            await provider.provide("model")
            assert len(await b.find_providers("model")) == 1
        await trio.sleep(2)
        assert len(await b.find_providers("model")) == 1
        await trio.sleep(2)
        assert await b.find_providers("model") == ()
        assert await a.find_providers("model") == ()


async def test_a_withdrawn_key_is_not_listed_by_its_owner():
    async with open_node(config()) as a, open_node(config(a.addresses[0])) as b:
        await a.provide("model")
        assert len(await b.find_providers("model")) == 1
        a.withdraw("model")
        assert await a.find_providers("model") in ((), await b.find_providers("model"))


async def test_requesters_do_not_fill_the_routing_tables_of_servers():
    async with open_node(config()) as server, open_node(config(server.addresses[0], server=False)) as client:
        await client.find_providers("model")
        await trio.sleep(1)
        assert server._directory._dht.get_routing_table_size() == 0
        async with open_node(config(server.addresses[0])):
            await trio.sleep(1)
            assert server._directory._dht.get_routing_table_size() == 1


async def test_a_killed_peer_is_noticed(spawn):
    peer = spawn()
    async with open_node(config(peer.address)) as network:
        stream = await network.open_stream(peer.peer, ECHO)
        await stream.send_all(b"x")
        await receive_exactly(stream, 1)
        peer.process.kill()
        peer.process.wait()
        with trio.fail_after(2):
            await assert_ended(stream)
            while peer.peer in network.connected_peers():
                await trio.sleep(0.05)
            with pytest.raises(NetworkError, match=f"{peer.peer}.*refused"):
                await network.open_stream(peer.peer, ECHO)


async def test_a_peer_that_comes_back_is_reached_at_once(spawn):
    seed = "07" * 32
    peer = spawn("--seed", seed)
    async with open_node(config(peer.address)) as network:
        await assert_serves(network, peer)
        peer.process.kill()
        peer.process.wait()
        with pytest.raises(NetworkError):
            await network.open_stream(peer.peer, ECHO, timeout_s=2)
        again = spawn("--seed", seed)
        assert again.peer == peer.peer
        await assert_serves(network, again)


async def test_a_frozen_peer_costs_no_more_than_the_deadline(spawn):
    peer = spawn()
    async with open_node(config(peer.address)) as network:
        messages = MessageStream(await network.open_stream(peer.peer, ECHO))
        peer.process.send_signal(signal.SIGSTOP)
        with trio.fail_after(4):
            with pytest.raises(NetworkError, match=f"{peer.peer} sent no Envelope within 1 s"):
                await messages.receive(Envelope, timeout_s=1)
            with pytest.raises(NetworkError, match=f"{peer.peer} did not answer within 1 s"):
                await network.open_stream(peer.peer, ECHO, timeout_s=1)
        peer.process.send_signal(signal.SIGCONT)
        await assert_serves(network, peer)


async def test_a_frozen_peer_is_dropped_by_the_connections_own_ping(spawn, monkeypatch):
    monkeypatch.setattr("edgellm.p2p.muxer.PING_INTERVAL_S", 0.5)
    monkeypatch.setattr("edgellm.p2p.muxer.PING_TIMEOUT_S", 1.0)
    peer = spawn()
    async with open_node(config(peer.address)) as network:
        stream = await network.open_stream(peer.peer, ECHO)
        await trio.sleep(3)
        assert network.connected_peers() == {peer.peer}
        peer.process.send_signal(signal.SIGSTOP)
        with trio.fail_after(4):
            await assert_ended(stream)
            while network.connected_peers():
                await trio.sleep(0.05)


async def test_a_node_ends_promptly_even_while_a_frozen_peer_takes_no_data(spawn):
    class StopError(Exception):
        pass

    async def stop_in_the_middle() -> None:
        async with open_node(config(peer.address)) as network, trio.open_nursery() as nursery:
            stream = await network.open_stream(peer.peer, "/edgellm/test/deaf/1")
            peer.process.send_signal(signal.SIGSTOP)
            stream._net_stream.muxed_stream.send_window = 1 << 40  # so that only the kernel holds it back
            nursery.start_soon(stream.send_all, bytes(64 << 20))
            await trio.sleep(1)
            nonlocal stopped_at
            stopped_at = trio.current_time()
            raise StopError

    peer = spawn()
    stopped_at = 0.0
    with pytest.raises((StopError, ExceptionGroup)):
        await stop_in_the_middle()
    assert trio.current_time() - stopped_at < 2


async def test_garbage_on_every_protocol_and_on_the_bare_port_harms_nobody(spawn):
    peer = spawn()
    protocols = ["/edgellm/kad/1.0.0", "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"]
    protocols += [f"/edgellm/test/{name}/1" for name in ("echo", "message", "crash", "source")]
    payloads = [
        b"",
        b"\xff" * 4096,
        bytes(64),
        os.urandom(3000),
        b"\xff\xff\xff\xff\x7f" + bytes(10),
        b"\x05\x08c",
    ]
    async with open_node(config(peer.address, server=False)) as network:
        for protocol in protocols:
            for payload in payloads:
                for end in ("aclose", "reset"):
                    stream = await network.open_stream(peer.peer, protocol)
                    with suppress(NetworkError):
                        await stream.send_all(payload)
                    await getattr(stream, end)()
            await assert_serves(network, peer)
        hello = b"\x13/multistream/1.0.0\n"
        raw = [
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            os.urandom(2000),
            hello,
            hello + b"\x07/noise\n" + os.urandom(300),
        ]
        for data in raw:
            with socket.create_connection(("127.0.0.1", peer.port)) as plain:
                plain.sendall(data)
                await trio.sleep(0.05)
            await assert_serves(network, peer)


@pytest.mark.parametrize("protocol", ["/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0"])
async def test_only_noise_is_offered(protocol):
    async with open_node(config()) as network:
        port = int(network.addresses[0].split("/")[4])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            line = f"{protocol}\n".encode()
            await stream.send_all(b"\x13/multistream/1.0.0\n" + bytes([len(line)]) + line)
            answer = b""
            with trio.fail_after(5):
                while not answer.endswith(b"na\n"):
                    answer += await stream.receive_some()
                    assert line not in answer


async def test_a_10_mb_message_is_refused(spawn):
    peer = spawn()
    async with open_node(config(peer.address)) as network:
        stream = await network.open_stream(peer.peer, "/edgellm/test/message/1")
        await stream.send_all(encode_varint(10_000_000) + bytes(100_000))
        answer = await MessageStream(stream).receive(Envelope)
        assert f"{network.peer} announced a Envelope of 10000000 bytes" in answer.payload.decode()
        await assert_serves(network, peer)


async def test_a_handler_that_raises_resets_its_stream_and_nothing_else(spawn):
    peer = spawn()
    async with open_node(config(peer.address)) as network:
        stream = await network.open_stream(peer.peer, "/edgellm/test/crash/1")
        await stream.send_all(b"x")
        with pytest.raises(NetworkError, match=peer.peer), trio.fail_after(5):
            await stream.receive_some()
        await assert_serves(network, peer)


async def test_a_reset_in_the_middle_of_a_transfer_leaves_the_peer_serving(spawn):
    peer = spawn()
    async with open_node(config(peer.address)) as network:
        stream = await network.open_stream(peer.peer, "/edgellm/test/source/1")
        await receive_exactly(stream, 300_000)
        await stream.reset()
        await trio.sleep(0.5)
        await assert_serves(network, peer)


async def test_a_send_that_is_cancelled_does_not_break_the_connection(spawn):
    peer = spawn()
    async with open_node(config(peer.address)) as network:
        other = await network.open_stream(peer.peer, ECHO)
        for _ in range(20):
            stream = await network.open_stream(peer.peer, ECHO)
            with trio.move_on_after(0.003):
                await stream.send_all(bytes(2_000_000))
            await stream.reset()
        await other.send_all(b"still there")
        with trio.fail_after(5):
            assert await receive_exactly(other, 11) == b"still there"


async def test_a_reader_may_pause_for_seconds(spawn):
    peer = spawn()
    async with open_node(config(peer.address)) as network:
        stream = await network.open_stream(peer.peer, "/edgellm/test/slow/1")
        with trio.fail_after(20):
            await stream.send_all(bytes(2_000_000))
            await stream.aclose()
            assert await stream.receive_some() == b"2000000"


async def test_a_peer_that_ignores_its_window_is_dropped(spawn):
    peer = spawn()
    async with open_node(config(peer.address)) as network, open_node(config(peer.address)) as good:
        stream = await network.open_stream(peer.peer, "/edgellm/test/deaf/1")
        before = psutil.Process(peer.process.pid).memory_info().rss
        stream._net_stream.muxed_stream.send_window = 1 << 40
        with pytest.raises(NetworkError), trio.fail_after(10):
            await stream.send_all(bytes(100_000_000))
        assert psutil.Process(peer.process.pid).memory_info().rss - before < 20_000_000
        await assert_serves(good, peer)


async def test_a_dead_address_before_a_good_one_costs_little(spawn):
    peer = spawn()
    dead = f"/ip4/127.0.0.1/tcp/{free_port()}"
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    addresses = [dead, f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}", peer.address]
    async with open_node(config()) as network:
        started = trio.current_time()
        await network.open_stream(peer.peer, ECHO, addresses=addresses)
        assert trio.current_time() - started < 1
    silent.close()


async def test_another_peer_at_the_address_is_not_taken_for_the_right_one(spawn):
    peer = spawn()
    wrong = Identity.generate().peer
    address = peer.address.removesuffix(peer.peer) + wrong
    async with open_node(config()) as network:
        with pytest.raises(NetworkError, match=f"{wrong}.*does not correspond"):
            await network.connect(address, timeout_s=5)
        assert network.connected_peers() == frozenset()


async def test_an_unknown_protocol_or_peer_is_named(spawn):
    peer = spawn()
    async with open_node(config(peer.address)) as network:
        with pytest.raises(NetworkError, match=f"{peer.peer} does not speak /edgellm/nothing/1"):
            await network.open_stream(peer.peer, "/edgellm/nothing/1")
        nobody = Identity.generate().peer
        with pytest.raises(NetworkError, match=f"{nobody}: no address is known"):
            await network.open_stream(nobody, ECHO)
        with pytest.raises(NetworkError, match="cannot reach peer garbage"):
            await network.open_stream("garbage", ECHO)


async def test_a_taken_port_is_named():
    async with open_node(config()) as network:
        port = network.addresses[0].split("/")[4]
        taken = NodeConfig(Identity.generate(), listen=(f"/ip4/127.0.0.1/tcp/{port}",))
        with pytest.raises(UsageError, match=f"port {port} is taken"):
            async with open_node(taken):
                pass


@pytest.mark.parametrize(
    "listen", ["nonsense", "/ip4/127.0.0.1/udp/1", "/ip4/203.0.113.9/tcp/0", "/dns4/a/tcp/1"]
)
async def test_an_address_that_cannot_be_listened_on_is_named(listen):
    with pytest.raises(UsageError, match=f"cannot listen on '?{listen}"):
        async with open_node(NodeConfig(Identity.generate(), listen=(listen,))):
            pass


async def test_when_no_bootstrap_peer_answers_all_are_named():
    peers = [f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{Identity.generate().peer}" for _ in range(2)]
    with pytest.raises(DiscoveryError) as caught:
        async with open_node(config(*peers)):
            pass
    assert all(peer in str(caught.value) for peer in peers)
    with pytest.raises(UsageError, match="no address of a peer"):
        async with open_node(config("/ip4/127.0.0.1/tcp/1")):
            pass


async def test_one_bootstrap_peer_that_answers_is_enough(spawn):
    dead = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{Identity.generate().peer}"
    peer = spawn("--provide", "model")
    async with open_node(config(dead, peer.address, server=False)) as network:
        assert [found.peer for found in await network.find_providers("model")] == [peer.peer]


async def test_a_node_that_lost_everyone_joins_again(spawn, monkeypatch):
    monkeypatch.setattr(node_module, "REJOIN_INTERVAL_S", 0.3)
    arguments = ("--seed", "08" * 32, "--port", str(free_port()))
    bootstrap = spawn(*arguments)
    async with open_node(config(bootstrap.address)) as network:
        bootstrap.process.kill()
        bootstrap.process.wait()
        await trio.sleep(1)
        assert network.connected_peers() == frozenset()
        again = spawn(*arguments)
        with trio.fail_after(5):
            while network.connected_peers() != {again.peer}:
                await trio.sleep(0.05)


async def test_a_node_whose_tasks_have_ended_says_so_instead_of_living_on():
    async def live_on() -> None:
        async with open_node(config()) as network:
            network._host.get_network().manager.cancel()
            await trio.sleep_forever()

    with pytest.raises(NetworkError, match="has stopped serving"), trio.fail_after(10):
        await live_on()


async def test_a_node_whose_listener_hangs_says_so(monkeypatch):
    monkeypatch.setattr("edgellm.p2p.watchdog.LISTENER_INTERVAL_S", 0.0)
    monkeypatch.setattr("edgellm.p2p.watchdog.LISTENER_TIMEOUT_S", 0.5)

    async def live_on(hanging: socket.socket) -> None:
        async with open_node(config()):
            await trio.sleep(3)  # the node itself answers
            monkeypatch.setattr(node_module, "_reachable_listeners", lambda host: [hanging.getsockname()])
            await trio.sleep_forever()

    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()
        with pytest.raises(NetworkError, match="does not answer"), trio.fail_after(10):
            await live_on(hanging)


async def test_an_error_of_the_body_comes_out_as_it_is():
    class MyError(Exception):
        pass

    with pytest.raises(MyError):
        async with open_node(config()):
            raise MyError


async def test_the_machines_addresses_are_advertised_and_loopback_is_not():
    async with open_node(NodeConfig(Identity.generate())) as network:
        hosts = {address.split("/")[2] for address in network.addresses}
        assert "0.0.0.0" not in hosts
        assert hosts == {"127.0.0.1"} or "127.0.0.1" not in hosts
    announced = NodeConfig(Identity.generate(), announce=("/ip4/198.51.100.7/tcp/4001",))
    async with open_node(announced) as network:
        assert network.addresses == (f"/ip4/198.51.100.7/tcp/4001/p2p/{network.peer}",)


@dataclass
class Idle:
    """A node that three others know, with nothing to do since `since`."""

    process: psutil.Process
    since: float
    used_s: float
    """Of CPU time, until then."""


@pytest.fixture(scope="module", autouse=True)
def idle(ahead: Ahead) -> Iterator[Idle]:
    """From the module's first test on, so that none has to wait while it is idle."""
    spawner = Spawner(ahead)
    bootstrap = spawner()
    for _ in range(3):
        spawner("--bootstrap", bootstrap.address)
    time.sleep(2)
    process = psutil.Process(bootstrap.process.pid)
    yield Idle(process, time.monotonic(), sum(process.cpu_times()[:2]))
    spawner.close()


async def test_an_idle_node_costs_next_to_nothing(idle: Idle):
    await trio.sleep(max(0, idle.since + 10 - time.monotonic()))
    used_s = sum(idle.process.cpu_times()[:2]) - idle.used_s
    assert used_s / (time.monotonic() - idle.since) <= 0.01
    assert idle.process.memory_info().rss <= 150e6


async def test_a_node_writes_nothing_to_stdout_or_stderr(spawn):
    peer = spawn()
    async with open_node(config(peer.address)) as network:
        await assert_serves(network, peer)
        stream = await network.open_stream(peer.peer, "/edgellm/test/source/1")
        await stream.reset()
        with pytest.raises(NetworkError):
            await network.open_stream(peer.peer, "/edgellm/nothing/1")
    out, err = peer.process.communicate("", timeout=10)
    assert (out, err) == ("", "")
    assert peer.process.returncode == 0


async def test_two_peers_that_are_busy_both_ways_do_not_wait_for_each_other_for_ever():
    """py-libp2p's reading task writes its answers itself, and with full buffers both ways nobody reads any more."""
    sent = Counter[str]()

    async def sink(stream: Stream) -> None:
        while await stream.receive_some():
            pass

    async def bulk(near: LibP2PNetwork, far: LibP2PNetwork) -> None:
        stream = await near.open_stream(far.peer, "/edgellm/test/sink/1")
        while True:
            await stream.send_all(bytes(262_144))

    async def small(near: LibP2PNetwork, far: LibP2PNetwork) -> None:
        while True:
            stream = await near.open_stream(far.peer, ECHO)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            await stream.aclose()
            sent[near.peer] += 1

    async with open_node(config()) as a, open_node(config()) as b:
        await a.connect(b.addresses[0])
        for network in (a, b):
            network.serve("/edgellm/test/sink/1", sink)
            network.serve(ECHO, echo)
        with trio.move_on_after(4):
            async with trio.open_nursery() as nursery:
                for near, far in ((a, b), (b, a)):
                    for _ in range(3):
                        nursery.start_soon(bulk, near, far)
                    for _ in range(8):
                        nursery.start_soon(small, near, far)
        assert min(sent[a.peer], sent[b.peer]) > 30


async def test_an_authenticated_peer_that_breaks_the_multiplexers_rules_harms_nobody_else(spawn):
    peer = spawn()
    header = struct.Struct("!BBHII")
    syn, ping, window, data = 1, 2, 1, 0
    attacks = {
        "unknown type": header.pack(0, 77, 0, 1, 5),
        "unknown version": header.pack(9, data, 0, 1, 0),
        "unknown stream": header.pack(0, data, 0, 999, 4) + b"data",
        "oversize": header.pack(0, data, 0, 1, 0xFFFFFFFF),
        "same stream twice": header.pack(0, window, syn, 7, 0) * 2,
        "reset on arrival": header.pack(0, window, syn | 8, 9, 0) * 50,
        "window overflow": header.pack(0, window, syn, 11, 0xFFFFFFFF) * 20,
        "pong nobody asked for": header.pack(0, ping, 2, 0, 42) * 100,
        "flood of pings": header.pack(0, ping, syn, 0, 1) * 20_000,
        "flood of streams": b"".join(header.pack(0, window, syn, n, 0) for n in range(101, 20_001, 2)),
        "go away": header.pack(0, 3, 0, 0, 0),
        "random": os.urandom(30_000),
    }
    for name, attack in attacks.items():
        async with open_node(config(peer.address, server=False)) as network:
            (connection,) = network._dialer.connections(ID.from_base58(peer.peer))
            with suppress(Exception), trio.move_on_after(5):
                for start in range(0, len(attack), 60_000):
                    await connection.muxed_conn.secured_conn.write(attack[start : start + 60_000])
            await trio.sleep(0.3)
        async with open_node(config(peer.address, server=False)) as good:
            await assert_serves(good, peer)
        memory = psutil.Process(peer.process.pid).memory_info().rss
        assert memory < 150e6, name
