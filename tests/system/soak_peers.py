"""Peers that come, ask, misbehave and go: `python soak_peers.py ADDRESS CYCLE_S CALM_S`, ADDRESS being a peer's multiaddr.

Each cycle is CYCLE_S of trouble and CALM_S without any, in which all of its connections are gone. Prints a line of JSON
after each.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from contextlib import suppress

import trio

from edgellm.discovery.collect import SequenceBook, ask_host, find_hosts
from edgellm.discovery.publish import PROTOCOL as ADVERT
from edgellm.errors import EdgeError
from edgellm.leasing import PROTOCOL as LEASE
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import PeerAddress
from edgellm.p2p.node import LibP2PNetwork, NodeConfig, open_node

PROTOCOLS = (
    ADVERT,
    LEASE,
    "/edgellm/model/1",
    "/edgellm/overlay/1",
    "/edgellm/kad/1.0.0",
    "/ipfs/id/1.0.0",
    "/ipfs/ping/1.0.0",
)
AT_ONCE = 6


class Trouble:
    """What one machine's peers do to the peer at `address`."""

    def __init__(self, address: str, seed: int = 1) -> None:
        self.address = address
        self.near, _, self.peer = address.rpartition("/p2p/")
        self.done: Counter[str] = Counter()
        self._chance = random.Random(seed)

    async def cycle(self, seconds: float) -> None:
        """So long, `AT_ONCE` peers at a time."""
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(self._one_after_another)

    async def _one_after_another(self) -> None:
        ways = (self.ask, self.provide, self.whisper, self.babble, self.leave_open, self.knock, self.vanish)
        while True:
            way = self._chance.choice(ways)
            with trio.move_on_after(8), suppress(EdgeError, OSError, trio.BrokenResourceError):
                await way()
            self.done[way.__name__] += 1

    def _join(self, *, server: bool = False) -> NodeConfig:
        listen = ("/ip4/0.0.0.0/tcp/0",) if server else ()
        return NodeConfig(Identity.generate(), listen, bootstrap=(self.address,), dht_server=server)

    async def ask(self) -> None:
        """As requesters do: look for hosts, ask for adverts."""
        async with open_node(self._join()) as network:
            await find_hosts(network, None, book=SequenceBook(), now=time.time)
            host = PeerAddress(self.peer, (self.near,))
            with suppress(EdgeError):
                await ask_host(network, host, book=SequenceBook(), now=time.time)

    async def provide(self) -> None:
        """As hosts do, and stop."""
        async with open_node(self._join(server=True)) as network:
            for number in range(3):
                await network.provide(f"soak {self._chance.randrange(1000)} {number}")
            await trio.sleep(0.5)

    async def whisper(self) -> None:
        """Streams on which a byte comes now and then."""
        async with open_node(self._join()) as network, trio.open_nursery() as nursery:

            async def one(protocol: str) -> None:
                with suppress(EdgeError):
                    stream = await network.open_stream(self.peer, protocol)
                    for _ in range(4):
                        await stream.send_all(b"\x20")
                        await trio.sleep(0.5)

            for protocol in PROTOCOLS * 3:
                nursery.start_soon(one, protocol)

    async def babble(self) -> None:
        """Garbage on every protocol."""
        async with open_node(self._join()) as network:
            for protocol in PROTOCOLS:
                for size in (1, 300, 70_000):
                    with suppress(EdgeError), trio.move_on_after(0.5):
                        stream = await network.open_stream(self.peer, protocol)
                        await stream.send_all(os.urandom(size))
                        await stream.receive_some()

    async def leave_open(self) -> None:
        """Many streams, neither read nor closed."""
        async with open_node(self._join()) as network:
            await self._open(network, 60)
            await trio.sleep(1)

    async def vanish(self) -> None:
        """The connection breaks in the middle of everything."""
        async with open_node(self._join()) as network:
            await self._open(network, 20)
            for connection in list(network._host.get_network().connections.values()):
                for each in connection:
                    await each.muxed_conn.secured_conn.close()

    async def knock(self) -> None:
        """Connections that never say who they are."""
        host, port = self.near.split("/")[2], int(self.near.split("/")[4])
        async with trio.open_nursery() as nursery:

            async def one() -> None:
                with suppress(OSError, trio.BrokenResourceError):
                    async with await trio.open_tcp_stream(host, port) as plain:
                        await plain.send_all(os.urandom(self._chance.randrange(40)))
                        await trio.sleep(2)

            for _ in range(15):
                nursery.start_soon(one)

    async def _open(self, network: LibP2PNetwork, count: int) -> None:
        for _ in range(count):
            with suppress(EdgeError):
                await network.open_stream(self.peer, self._chance.choice(PROTOCOLS), timeout_s=3)


async def main(address: str, cycle_s: float, calm_s: float) -> None:
    trouble = Trouble(address)
    while True:
        await trouble.cycle(cycle_s)
        print(json.dumps(trouble.done), flush=True)
        await trio.sleep(calm_s)


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
    except* KeyboardInterrupt:
        print("stopped")
