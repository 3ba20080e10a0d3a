"""A peer in a process of its own, for tests that kill, freeze or attack one.

Waits for its arguments, a line of JSON on its stdin; prints its first address, then serves until its stdin is closed.
"""

import argparse
import json
import sys

import trio

from edgellm.errors import EdgeError
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import Stream
from edgellm.p2p.node import NodeConfig, open_node
from edgellm.wire.envelope_pb2 import Envelope


async def echo(stream: Stream) -> None:
    while chunk := await stream.receive_some():
        await stream.send_all(chunk)


async def source(stream: Stream) -> None:
    """Sends without end."""
    while True:
        await stream.send_all(bytes(65536))


async def deaf(stream: Stream) -> None:
    """Never reads."""
    await trio.sleep_forever()


async def slow(stream: Stream) -> None:
    """Reads nothing for 7 s, then everything, and answers with its size."""
    await trio.sleep(7)
    size = 0
    while chunk := await stream.receive_some():
        size += len(chunk)
    await stream.send_all(str(size).encode())


async def crash(stream: Stream) -> None:
    await stream.receive_some()
    raise RuntimeError("a bug in a handler")


async def message(stream: Stream) -> None:
    messages = MessageStream(stream)
    try:
        await messages.receive(Envelope)
    except EdgeError as error:
        await messages.send(Envelope(payload=str(error).encode()))


HANDLERS = {"echo": echo, "source": source, "deaf": deaf, "slow": slow, "crash": crash, "message": message}


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", nargs="*", default=[])
    parser.add_argument("--provide", nargs="*", default=[])
    parser.add_argument("--seed", default="")
    parser.add_argument("--port", default="0")
    parser.add_argument("--serve-relay", action="store_true")
    parser.add_argument("--relays", nargs="*", default=[])
    options = parser.parse_args(arguments)
    identity = Identity.from_seed(bytes.fromhex(options.seed)) if options.seed else Identity.generate()
    config = NodeConfig(
        identity,
        # Who is reached through a relay listens nowhere.
        listen=() if options.relays else (f"/ip4/127.0.0.1/tcp/{options.port}",),
        bootstrap=tuple(options.bootstrap),
        relays=tuple(options.relays),
        serve_relay=options.serve_relay,
    )
    async with open_node(config) as network:
        for name, handler in HANDLERS.items():
            network.serve(f"/edgellm/test/{name}/1", handler)
        for key in options.provide:
            await network.provide(key)
        print(json.dumps({"peer": network.peer, "address": network.addresses[0]}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


# A peer that nobody wants any more gets no line.
if line := sys.stdin.readline():
    trio.run(main, json.loads(line))
