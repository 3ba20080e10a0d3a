"""Peers that accept no connections, reached through one that does."""

import os

import pytest
import trio

from edgellm.errors import NetworkError
from edgellm.p2p.identity import Identity
from edgellm.p2p.node import NodeConfig, open_node
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
