"""Two doorkeepers face each other over a network in memory, as right after a handshake."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from edgellm.errors import EdgeError, NetworkError
from edgellm.p2p.doorkeeper import Doorkeeper, Greeting

STRANGER_PATIENCE_S = 30.0
"""How long one without a doorkeeper waits for the other side to speak a protocol."""


@dataclass(frozen=True, slots=True)
class MemoryGreeting:
    """One side (`edgellm.p2p.doorkeeper.Greeting`)."""

    peer: str
    handshake: bytes
    source: str
    sending: trio.MemorySendChannel[bytes]
    receiving: trio.MemoryReceiveChannel[bytes]

    async def send(self, message: bytes) -> None:
        try:
            await self.sending.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise NetworkError(f"peer {self.peer} has closed the connection") from error

    async def receive(self, max_bytes: int) -> bytes:
        try:
            message = await self.receiving.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as error:
            raise NetworkError(f"peer {self.peer} has closed the connection") from error
        if len(message) > max_bytes:
            raise NetworkError(f"peer {self.peer} announced {len(message)} bytes")
        return message

    def close(self) -> None:
        self.sending.close()
        self.receiving.close()


def greetings(dialler: str, listener: str, source: str = "10.0.0.9") -> tuple[MemoryGreeting, MemoryGreeting]:
    """Both sides of a new connection: the dialler's, the listener's."""
    handshake = secrets.token_bytes(32)
    to_listener, at_listener = trio.open_memory_channel[bytes](4)
    to_dialler, at_dialler = trio.open_memory_channel[bytes](4)
    return (
        MemoryGreeting(listener, handshake, "", to_listener, at_dialler),
        MemoryGreeting(dialler, handshake, source, to_dialler, at_listener),
    )


async def meet(
    dialler: tuple[str, Doorkeeper | None], listener: tuple[str, Doorkeeper | None]
) -> NetworkError | None:
    """Why the two do not have to do with each other; None where both let the other in, or neither has a doorkeeper."""
    if dialler[1] is None and listener[1] is None:
        return None
    near, far = greetings(dialler[0], listener[0])
    refusals: dict[str, EdgeError] = {}

    async def side(decide: Callable[[Greeting], Awaitable[None]] | None, greeting: MemoryGreeting) -> None:
        try:
            if decide is None:
                # It would go on to the muxer; the other side takes its words for no greeting, or hears none.
                with trio.move_on_after(STRANGER_PATIENCE_S):
                    await greeting.receive(1 << 16)
                raise NetworkError(f"peer {greeting.peer} does not go on to a protocol")
            await decide(greeting)
        except EdgeError as error:
            refusals[greeting.peer] = error
            greeting.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(side, dialler[1].outbound if dialler[1] else None, near)
        nursery.start_soon(side, listener[1].inbound if listener[1] else None, far)
    near.close()
    far.close()
    if not refusals:
        return None
    # As the dialler sees it, where it sees anything.
    why = refusals.get(listener[0]) or f"peer {listener[0]} has closed the connection"
    return NetworkError(f"cannot reach peer {listener[0]}: {why}")
