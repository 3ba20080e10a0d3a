"""Peers that know nothing of each other meet on the local network."""

import trio

from edgellm.p2p.identity import Identity
from edgellm.p2p.node import NodeConfig, open_node


async def test_two_nodes_meet_by_multicast_and_find_each_others_keys():
    def config() -> NodeConfig:
        return NodeConfig(Identity.generate(), mdns=True)

    async with open_node(config()) as a, open_node(config()) as b:
        with trio.fail_after(15):
            while b.peer not in a.connected_peers():
                await trio.sleep(0.1)
            await b.provide("model")
            while [found.peer for found in await a.find_providers("model")] != [b.peer]:
                await trio.sleep(0.1)
        ending = trio.current_time()
    assert trio.current_time() - ending < 4


async def test_a_requester_that_listens_nowhere_finds_hosts_by_multicast():
    async with open_node(NodeConfig(Identity.generate(), mdns=True)) as host:
        await host.provide("model")
        requester = NodeConfig(Identity.generate(), listen=(), mdns=True, dht_server=False)
        async with open_node(requester) as network:
            with trio.fail_after(15):
                while [found.peer for found in await network.find_providers("model")] != [host.peer]:
                    await trio.sleep(0.1)
