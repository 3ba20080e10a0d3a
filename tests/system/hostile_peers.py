"""Peers that offer a model and behave badly: `python hostile_peers.py BOOTSTRAP DIGEST VICTIM_PEER`.

Each way of being bad is a peer of its own. Prints "up" when all are listed as hosts of the model; ends by Ctrl-C.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import trio

from edgellm.discovery.codec import seal_advert
from edgellm.discovery.keys import HOSTS_KEY, model_key
from edgellm.discovery.publish import PROTOCOL as ADVERT
from edgellm.engine.registry import load_backend
from edgellm.errors import NetworkError
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import Network, Stream
from edgellm.p2p.node import NodeConfig, open_node
from edgellm.p2p.varint import encode_varint
from edgellm.types.advert import Device, Engine, HostAdvert, ModelOffer
from edgellm.wire import wire_pb2

MODEL = "tiny"
OTHER_PROTOCOLS = ("/edgellm/lease/1", "/edgellm/model/1", "/edgellm/overlay/1")
EVERY_PROTOCOL = (ADVERT, *OTHER_PROTOCOLS, "/edgellm/kad/1.0.0", "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0")

Answer = Callable[[Network, MessageStream], Awaitable[None]]


def advert(peer: str) -> HostAdvert:
    """One that a requester would gladly believe: the best host of the swarm."""
    backend = load_backend("vllm")
    now = time.time()
    device = Device("0", "cpu", "the fastest of all", 64 << 30, 1e13, 1e15)
    return HostAdvert(
        peer=peer,
        name="mallory",
        sequence=round(now * 1000),
        issued_at=now,
        expires_at=now + 60,
        addresses=(),
        engine=Engine("vllm", backend.device_kind(), tuple(sorted(backend.versions().items()))),
        devices=(device,),
        free_devices=("0",),
        free_memory_bytes=device.memory_bytes,
        models=(ModelOffer(MODEL, DIGEST, 8, 3_700_000, 2048),),
        fabrics=("overlay",),
        free_leases=1,
        draining=False,
    )


async def say(network: Network, messages: MessageStream, told: HostAdvert) -> None:
    envelope = seal_advert(told, network.identity)
    await messages.send(wire_pb2.AdvertReply(envelope=envelope))


async def forger(network: Network, messages: MessageStream) -> None:
    await say(network, messages, advert(VICTIM))


async def late(network: Network, messages: MessageStream) -> None:
    now = time.time()
    await say(network, messages, replace(advert(network.peer), issued_at=now - 900, expires_at=now - 600))


async def early(network: Network, messages: MessageStream) -> None:
    now = time.time()
    await say(network, messages, replace(advert(network.peer), issued_at=now + 600, expires_at=now + 660))


async def rewinder(network: Network, messages: MessageStream) -> None:
    """Good the first time that each requester asks; afterwards the same, older."""
    asked = ASKED.setdefault(messages.peer, [])
    asked.append(time.time())
    told = advert(network.peer)
    await say(
        network, messages, replace(told, sequence=told.sequence - 100_000 * len(asked), name="rewinder")
    )


async def giant(network: Network, messages: MessageStream) -> None:
    await messages.stream.send_all(encode_varint(10 << 20) + bytes(10 << 20))


async def babbler(network: Network, messages: MessageStream) -> None:
    await messages.stream.send_all(encode_varint(400) + secrets.token_bytes(400))


async def deaf(network: Network, messages: MessageStream) -> None:
    await trio.sleep_forever()


async def liar(network: Network, messages: MessageStream) -> None:
    """A good advert; whatever is asked next gets garbage."""
    await say(network, messages, replace(advert(network.peer), name="liar"))


async def run(answer: Answer, ready: trio.Event) -> None:
    config = NodeConfig(Identity.generate(), ("/ip4/0.0.0.0/tcp/0",), bootstrap=(BOOTSTRAP,))
    async with open_node(config) as network:

        async def serve(stream: Stream) -> None:
            messages = MessageStream(stream, max_bytes=1 << 25)
            await messages.receive(wire_pb2.AdvertRequest)
            await answer(network, messages)

        network.serve(ADVERT, serve)
        for protocol in OTHER_PROTOCOLS:
            network.serve(protocol, garbage)
        for key in (HOSTS_KEY, model_key(MODEL), model_key(DIGEST)):
            await network.provide(key)
        ready.set()
        if answer is liar:
            await attack(network)
        await trio.sleep_forever()


async def garbage(stream: Stream) -> None:
    await stream.send_all(secrets.token_bytes(5000))


async def attack(network: Network) -> None:
    """Garbage of three kinds on every protocol of the meeting point and the victim."""
    victims = [BOOTSTRAP.rsplit("/", 1)[1], VICTIM]
    pieces = (
        secrets.token_bytes(3000),
        encode_varint(1 << 60) + bytes(100),
        encode_varint(10 << 20) + bytes(10 << 20),
    )
    sent = 0
    for victim in victims:
        for protocol in EVERY_PROTOCOL:
            for piece in pieces:
                with trio.move_on_after(1):
                    try:
                        stream = await network.open_stream(
                            victim, protocol, addresses=ADDRESSES.get(victim, ())
                        )
                        sent += 1
                        await stream.send_all(piece)
                        await stream.receive_some()
                        await stream.reset()
                    except NetworkError:
                        continue
    print(f"attacked {sent}", flush=True)


async def main() -> None:
    async with trio.open_nursery() as nursery:
        for answer in (forger, late, early, rewinder, giant, babbler, deaf, liar):
            ready = trio.Event()
            nursery.start_soon(run, answer, ready)
            await ready.wait()
        print("up", flush=True)


BOOTSTRAP, DIGEST, VICTIM, VICTIM_ADDRESS = sys.argv[1:]
ADDRESSES = {VICTIM: (VICTIM_ADDRESS,)}
ASKED: dict[str, list[float]] = {}

if __name__ == "__main__":
    try:
        trio.run(main)
    except* KeyboardInterrupt:
        print("stopped")
