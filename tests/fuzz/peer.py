"""A peer that sends whatever is tried, and a network that leads to it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import trio

from edgellm.p2p.envelope import open_envelope
from edgellm.p2p.identity import Identity
from edgellm.p2p.varint import encode_varint
from tests.fuzz.decoder import MAX_INPUT_S

SELF = Identity.from_seed(b"fuzz" * 8)
NOW = 1_800_000_000.0


class Bytes:
    """A stream of a peer that sends `data` and takes everything (`edgellm.p2p.network.Stream`)."""

    def __init__(self, data: bytes, chunk: int = 700) -> None:
        self._data = data
        self._chunk = chunk
        self.peer = SELF.peer

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        return None

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        size = min(max_bytes, self._chunk)
        received, self._data = self._data[:size], self._data[size:]
        return received

    async def aclose(self) -> None:
        return None

    async def reset(self) -> None:
        return None


class Serving:
    """A network that keeps the handlers that others register."""

    def __init__(self, stream: Bytes | None = None) -> None:
        self.handlers: dict[str, Callable[[Any], Coroutine[Any, Any, None]]] = {}
        self.stream = stream
        self.peer = SELF.peer
        self.identity = SELF

    def serve(self, protocol: str, handler: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        self.handlers[protocol] = handler

    def member(self, peer: str) -> None:
        return None

    def relay_of(self, peer: str) -> str:
        return ""

    async def open_stream(self, *_: object, **__: object) -> Bytes:
        return self.stream or Bytes(b"")


def at_once(coroutine: Coroutine[Any, Any, object]) -> object:
    """Runs what never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("it waited")


def in_trio(work: Callable[[], Coroutine[Any, Any, object]]) -> object:
    async def run() -> object:
        with trio.move_on_after(MAX_INPUT_S / 2):
            return await work()
        raise AssertionError("it waits for ever")

    return trio.run(run)


def payload(envelope: bytes, domain: str, kind: bytes) -> bytes:
    """What is signed in an envelope."""
    return open_envelope(envelope, domain, kind)[1]


def wire(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def prefixed(*messages: Any) -> bytes:
    """Messages as they follow each other in a stream."""
    bodies = [wire(message) for message in messages]
    return b"".join(encode_varint(len(body)) + body for body in bodies)
