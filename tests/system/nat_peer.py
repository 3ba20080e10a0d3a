"""A peer for tests of routers: `serve` is reached by others, `dial` reaches one that it finds in the DHT, `relay` carries both.

Prints what it finds as JSON, one object a line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from contextlib import suppress
from typing import Any

import trio

from edgellm.errors import EdgeError
from edgellm.p2p.autonat import DialBackServer
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import Stream
from edgellm.p2p.node import LibP2PNetwork, NodeConfig, open_node
from edgellm.p2p.relay_limits import Allowance, Ledger, RelayLimits
from edgellm.p2p.relay_server import RelayServer

ECHO = "/edgellm/test/echo/1"
KEY = "model"


def tell(**words: Any) -> None:
    print(json.dumps(words), flush=True)


async def echo(stream: Stream) -> None:
    while chunk := await stream.receive_some():
        await stream.send_all(chunk)


async def serve(network: LibP2PNetwork, options: argparse.Namespace) -> None:
    network.serve(ECHO, echo)
    await network.provide(KEY)
    reach = network.reach
    assert reach is not None

    def report() -> None:
        tell(**dataclasses.asdict(reach.verdict), peer=network.peer, listed=network.addresses)

    reach.on_change = lambda verdict: report()
    report()
    await trio.sleep_forever()


async def dial(network: LibP2PNetwork, options: argparse.Namespace) -> None:
    with trio.fail_after(options.patience):
        while not (found := await network.find_providers(KEY)):
            await trio.sleep(0.3)
    (provider,) = found
    for size in options.bytes:
        try:
            stream = await network.open_stream(provider.peer, ECHO, addresses=provider.addresses)
            relay = network.relay_of(provider.peer)
            data = os.urandom(size)
            received = bytearray()
            with trio.fail_after(options.patience):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send_all, data)
                    while len(received) < size and (chunk := await stream.receive_some()):
                        received += chunk
            begun = trio.current_time()
            if options.hold:
                with trio.move_on_after(options.hold), suppress(EdgeError):
                    while await stream.receive_some():
                        pass
            tell(relay=relay, same=received == data, held_s=trio.current_time() - begun)
            await trio.sleep(options.pause)
        except (EdgeError, BaseExceptionGroup, trio.TooSlowError) as error:
            leaf = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
            tell(relay=network.relay_of(provider.peer), error=str(leaf) or type(leaf).__name__)


def be_hostile(how: str) -> None:
    """Makes this process's relay one that harms: it swallows all, is slow, changes bytes, or lies about addresses."""
    carry, connect = RelayServer._carry, RelayServer._connect

    async def swallow(self: Any, one: Any, other: Any, circuit: Any) -> None:
        await trio.sleep_forever()

    async def delay(self: Any, stream: Any, asked: Any) -> None:
        await trio.sleep(30)
        await connect(self, stream, asked)

    async def garble(self: Any, one: Any, other: Any, circuit: Any) -> None:
        for stream in (one, other):
            stream.read = garbling(stream.read)
        await carry(self, one, other, circuit)

    def garbling(read: Any) -> Any:
        passed = 0

        async def garbled(n: int | None = None) -> bytes:
            nonlocal passed
            data: bytes = await read(n)
            passed += len(data)
            return data if passed < 20_000 else bytes(byte ^ 1 for byte in data)

        return garbled

    async def claim_all(self: Any, address: str, peer_id: Any) -> bool:
        return True

    match how:
        case "drop":
            RelayServer._carry = swallow  # type: ignore[method-assign]
        case "delay":
            RelayServer._connect = delay  # type: ignore[method-assign]
        case "garble":
            RelayServer._carry = garble  # type: ignore[method-assign]
        case "lie":
            DialBackServer._reaches = claim_all  # type: ignore[method-assign]
            Ledger.has_place = lambda self, peer, now: False  # type: ignore[method-assign]


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["serve", "dial", "relay"])
    parser.add_argument("--bootstrap", nargs="*", default=[])
    parser.add_argument("--relays", nargs="*", default=[])
    parser.add_argument("--no-upnp", action="store_true")
    parser.add_argument("--overlay-port", type=int, default=0)
    parser.add_argument("--bytes", type=int, nargs="*", default=[100_000])
    parser.add_argument("--hold", type=float, default=0.0)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--no-relay", action="store_true")
    parser.add_argument("--patience", type=float, default=20.0)
    parser.add_argument("--circuit-bytes", type=int, default=1 << 30)
    parser.add_argument("--circuits", type=int, default=16)
    parser.add_argument("--circuit-s", type=float, default=600.0)
    parser.add_argument("--places", type=int, default=100)
    parser.add_argument("--hostile", choices=["drop", "delay", "garble", "lie"])
    parser.add_argument("--log", action="store_true")
    options = parser.parse_args()
    if options.log:
        logging.basicConfig(stream=sys.stderr)
        logging.getLogger("edgellm").setLevel(logging.DEBUG)
        logging.getLogger("edgellm.p2p.libp2p").setLevel(logging.ERROR)
    if options.hostile:
        be_hostile(options.hostile)
    each = Allowance(options.circuits, options.circuit_s, options.circuit_bytes)
    config = NodeConfig(
        Identity.generate(),
        listen=() if options.role == "dial" else ("/ip4/0.0.0.0/tcp/4001",),
        bootstrap=tuple(options.bootstrap),
        relays=tuple(options.relays),
        dht_server=options.role != "dial",
        serve_relay=options.role == "relay" and not options.no_relay,
        relay_limits=RelayLimits(reservations=options.places, each=each),
        stay_reachable=options.role == "serve",
        map_ports=not options.no_upnp,
        other_ports=(options.overlay_port,),
    )
    async with open_node(config) as network:
        if options.role == "relay":
            tell(address=network.addresses[0], peer=network.peer)
            await trio.sleep_forever()
        await (serve if options.role == "serve" else dial)(network, options)


if __name__ == "__main__":
    try:
        trio.run(main)
    except KeyboardInterrupt:
        sys.exit(0)
