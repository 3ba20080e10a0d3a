"""Several peers of a DHT in one process, for tests that kill many of them at once.

Takes its arguments as a line of JSON on its stdin and prints a line for each peer; announces its hosts at the next line, and
says when it has; serves until its stdin is closed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from contextlib import AsyncExitStack

import trio

from edgellm.discovery.publish import Publisher
from edgellm.p2p.identity import Identity
from edgellm.p2p.node import NodeConfig, open_node
from edgellm.types.advert import Device, Engine, HostAdvert, ModelOffer

ENGINE = Engine("vllm", "cpu", (("vllm", "0.32.0"),))


def advert(peer: str, model: str, addresses: tuple[str, ...]) -> HostAdvert:
    return HostAdvert(
        peer=peer,
        name=peer[-6:],
        sequence=round(time.time() * 1000),
        issued_at=time.time(),
        expires_at=time.time() + 120,
        addresses=tuple(address.rsplit("/p2p/", 1)[0] for address in addresses),
        engine=ENGINE,
        devices=(Device("0", "cpu", "test", 1 << 30, 20e9, 1e12),),
        free_devices=("0",),
        free_memory_bytes=1 << 30,
        models=(ModelOffer(model, "ab" * 32, 8, 1 << 20, 2048),),
        fabrics=("overlay",),
        free_leases=1,
    )


async def main(peers: int, bootstrap: list[str], model: str, hosts: int) -> None:
    """`peers` nodes, of which the first `hosts` host `model`."""
    async with AsyncExitStack() as stack:
        networks = []
        for index in range(peers):
            config = NodeConfig(
                Identity.generate(), listen=("/ip4/127.0.0.1/tcp/0",), bootstrap=tuple(bootstrap)
            )
            network = await stack.enter_async_context(open_node(config))
            networks.append(network)
            if not bootstrap and index == 0:
                bootstrap = [network.addresses[0]]
        for index, network in enumerate(networks):
            peer = {"peer": network.peer, "address": network.addresses[0], "hosts": index < hosts}
            print(json.dumps(peer), flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        for network in networks[:hosts]:
            own = network

            def current(network: object = own) -> HostAdvert:
                return advert(network.peer, model, network.addresses)  # type: ignore[attr-defined]

            await Publisher(own, current).announce()
        print("announced", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if line := sys.stdin.readline():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    trio.run(lambda: main(**json.loads(line)))
