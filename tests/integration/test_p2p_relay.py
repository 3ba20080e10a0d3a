"""Peers that accept no connections, reached through one that does."""

import os

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.dcutr import PROTOCOL_ID as DCUTR
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID as HOP
from libp2p.relay.circuit_v2.protocol import STOP_PROTOCOL_ID as STOP

from edgellm.errors import NetworkError
from edgellm.p2p import muxer
from edgellm.p2p.autonat import AUTONAT, REST_S, ask_to_dial_back
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import Stream
from edgellm.p2p.node import NodeConfig, open_node
from edgellm.p2p.varint import encode_varint
from tests.integration.test_p2p_node import (
    ECHO,
    Spawner,
    ahead,
    assert_serves,
    config,
    receive_exactly,
    spawn,
)

__all__ = ["ahead", "spawn"]


async def test_a_peer_that_listens_nowhere_is_found_and_reached_through_a_relay(spawn: Spawner):
    relay = spawn("--serve-relay")
    hidden = spawn("--relays", relay.address, "--bootstrap", relay.address, "--provide", "model")
    assert hidden.address == f"{relay.address}/p2p-circuit/p2p/{hidden.peer}"
    async with open_node(config(relay.address, server=False)) as network:
        (found,) = await network.find_providers("model")
        assert found.peer == hidden.peer
        assert found.addresses == (f"{relay.address}/p2p-circuit",)
        stream = await network.open_stream(found.peer, ECHO, addresses=found.addresses)
        assert stream.peer == hidden.peer
        data = os.urandom(2_000_000)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, data)
                assert await receive_exactly(stream, len(data)) == data
        await assert_serves(network, hidden)


async def test_cancelled_sends_do_not_break_a_relayed_connection(spawn: Spawner):
    relay = spawn("--serve-relay")
    hidden = spawn("--relays", relay.address)
    async with open_node(config(relay.address, server=False)) as network:
        await network.connect(hidden.address)
        other = await network.open_stream(hidden.peer, ECHO)
        for _ in range(10):
            stream = await network.open_stream(hidden.peer, ECHO)
            with trio.move_on_after(0.01):
                await stream.send_all(bytes(2_000_000))
            await stream.reset()
        await other.send_all(b"still there")
        with trio.fail_after(5):
            assert await receive_exactly(other, 11) == b"still there"


async def test_a_relayed_connection_is_not_taken_for_a_stream_left_open(
    spawn: Spawner, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(muxer, "LINGER_S", 0.2)
    relay = spawn("--serve-relay")

    async def echo(stream: Stream) -> None:
        while data := await stream.receive_some():
            await stream.send_all(data)

    through = NodeConfig(Identity.generate(), listen=(), relays=(relay.address,))
    async with open_node(through) as hidden, open_node(config(server=False)) as network:
        hidden.serve(ECHO, echo)
        address = f"{relay.address}/p2p-circuit"
        stream = await network.open_stream(hidden.peer, ECHO, addresses=[address])
        for _ in range(4):
            await trio.sleep(0.2)
            await stream.send_all(b"still there")
            with trio.fail_after(5):
                assert await receive_exactly(stream, 11) == b"still there"


async def test_a_dead_relay_ends_the_streams_through_it(spawn: Spawner):
    relay = spawn("--serve-relay")
    hidden = spawn("--relays", relay.address)
    async with open_node(config(server=False)) as network:
        stream = await network.open_stream(hidden.peer, ECHO, addresses=[hidden.address])
        relay.process.kill()
        relay.process.wait()
        with trio.fail_after(5):
            with pytest.raises(NetworkError):
                await stream.receive_some()
            with pytest.raises(NetworkError, match=hidden.peer):
                await network.open_stream(hidden.peer, ECHO)


async def test_who_has_no_place_at_a_relay_is_not_reached_through_it(spawn: Spawner):
    relay = spawn("--serve-relay")
    other = spawn("--bootstrap", relay.address)
    async with open_node(config(server=False)) as network:
        with pytest.raises(NetworkError, match="NO_RESERVATION"):
            await network.connect(f"{relay.address}/p2p-circuit/p2p/{other.peer}", timeout_s=5)


async def test_a_peer_that_serves_no_relay_is_named_when_asked_to(spawn: Spawner):
    no_relay = spawn()
    behind = NodeConfig(Identity.generate(), listen=(), relays=(no_relay.address,))
    with pytest.raises(NetworkError, match=f"{no_relay.peer} does not relay"):
        async with open_node(behind):
            pass


GARBAGE = [
    b"",
    b"\x00",
    b"\xff" * 12,
    b"\x05hello",
    encode_varint(1 << 30),
    encode_varint(40) + b"\x0a\x26" + bytes(38),
]


@pytest.mark.parametrize("protocol", [HOP, STOP, DCUTR, AUTONAT])
async def test_garbage_to_a_relay_or_a_peer_behind_one_ends_a_stream(spawn: Spawner, protocol: str):
    relay = spawn("--serve-relay")
    async with open_node(config(relay.address, server=False)) as network:
        for garbage in GARBAGE:
            try:
                stream = await network.open_stream(relay.peer, protocol)
                await stream.send_all(garbage)
                await stream.aclose()
                with trio.move_on_after(0.2):
                    await stream.receive_some()
                await stream.reset()
            except NetworkError:
                continue
        await assert_serves(network, relay)


async def test_nobody_is_asked_to_connect_to_others(spawn: Spawner):
    """AutoNAT must not make a peer knock at doors of somebody else."""
    server = spawn("--serve-relay")
    listener = await trio.open_tcp_listeners(0, host="127.0.0.2")
    port = listener[0].socket.getsockname()[1]
    async with open_node(config(server.address, server=False)) as network:
        peer_id = ID.from_base58(server.peer)
        assert await ask_to_dial_back(network._host, peer_id, [f"/ip4/127.0.0.2/tcp/{port}"]) is None
    with trio.move_on_after(0.5):
        await listener[0].accept()
        raise AssertionError("it was dialled")
    await listener[0].aclose()


async def test_a_peer_that_cannot_be_connected_to_is_told_so_and_who_rests_says_nothing(spawn: Spawner):
    server = spawn("--serve-relay")
    async with open_node(config(server.address, server=False)) as network:
        peer_id = ID.from_base58(server.peer)
        own = [address.rpartition("/p2p/")[0] for address in network.addresses]
        dead = "/ip4/127.0.0.1/tcp/9"
        assert await ask_to_dial_back(network._host, peer_id, [dead]) == ""
        assert await ask_to_dial_back(network._host, peer_id, own) is None
        await trio.sleep(REST_S)
        assert await ask_to_dial_back(network._host, peer_id, [dead, *own]) == own[0]
        # Somebody else answers there.
        await trio.sleep(REST_S)
        other = spawn()
        stolen = other.address.rpartition("/p2p/")[0]
        assert await ask_to_dial_back(network._host, peer_id, [stolen]) == ""
