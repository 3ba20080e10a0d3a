"""Overlay connections that travel as libp2p streams: where two members cannot reach each other directly.

One switchboard a node. Each stream says which cluster, from whom and to which port; it is connected only when the peer at its
other end, proven by libp2p, is the member that it claims to be in a signed plan that this node takes part in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from edgellm.errors import NetworkError, ProtocolViolation
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Network, Stream
from edgellm.types.plan import ClusterPlan
from edgellm.types.text import one_line
from edgellm.wire import wire_pb2

PROTOCOL = "/edgellm/overlay/1"
OPEN_TIMEOUT_S = 10.0


class StreamAcceptor(Protocol):
    """The part of an overlay that takes streams (`edgellm.overlay.overlay.Overlay`)."""

    async def accept_stream(self, stream: Stream, source_address: str, port: int) -> None: ...


@dataclass(slots=True)
class PlanInForce:
    """The plan that a member goes by now: its requester may put another in its place."""

    plan: ClusterPlan


@dataclass(frozen=True, slots=True)
class _Line:
    in_force: PlanInForce
    own_address: str
    acceptor: StreamAcceptor


class Switchboard:
    """Connects overlay streams of all clusters that this node is a member of."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._lines: dict[tuple[str, str], _Line] = {}
        network.serve(PROTOCOL, self._answer)

    @contextmanager
    def connect(self, in_force: PlanInForce, own_address: str, acceptor: StreamAcceptor) -> Iterator[None]:
        """Takes streams for the member at `own_address` while the context lasts."""
        key = (in_force.plan.cluster, own_address)
        self._lines[key] = _Line(in_force, own_address, acceptor)
        try:
            yield
        finally:
            del self._lines[key]

    def opener(self, in_force: PlanInForce, own_address: str) -> Callable[[str, int], Awaitable[Stream]]:
        """What opens a stream from `own_address` to a port of another member. Raises NetworkError."""

        async def open_stream(address: str, port: int) -> Stream:
            plan = in_force.plan
            member = plan.at(address)
            if member is None:
                raise NetworkError(f"{address} is no member of the cluster")
            stream = await self._network.open_stream(
                member.peer, PROTOCOL, addresses=member.addresses, timeout_s=OPEN_TIMEOUT_S
            )
            messages = MessageStream(stream)
            opening = wire_pb2.OverlayOpen(
                cluster=plan.cluster, source_address=own_address, target_address=address, port=port
            )
            try:
                await messages.send(opening)
                reply = await messages.receive(wire_pb2.OverlayReply, timeout_s=OPEN_TIMEOUT_S)
                if reply.error:
                    raise NetworkError(f"member {address} refused port {port}: {one_line(reply.error, 200)}")
            except BaseException:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await stream.reset()
                raise
            return _After(messages)

        return open_stream

    async def _answer(self, stream: Stream) -> None:
        messages = MessageStream(stream)
        opening = await messages.receive(wire_pb2.OverlayOpen, timeout_s=OPEN_TIMEOUT_S, max_bytes=1024)
        line = self._lines.get((opening.cluster, opening.target_address))
        source = line.in_force.plan.at(opening.source_address) if line else None
        if line is None or source is None or source.peer != stream.peer or not 0 < opening.port < 65536:
            await messages.send(wire_pb2.OverlayReply(error="not a member of this cluster"))
            raise ProtocolViolation(f"peer {stream.peer} asked for an overlay that it is no member of")
        await messages.send(wire_pb2.OverlayReply())
        await line.acceptor.accept_stream(_After(messages), source.address, opening.port)


class _After:
    """The bytes of a stream after its opening messages."""

    def __init__(self, messages: MessageStream) -> None:
        self._messages = messages

    @property
    def peer(self) -> str:
        return self._messages.peer

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._messages.stream.send_all(data)

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        return await self._messages.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._messages.aclose()

    async def reset(self) -> None:
        await self._messages.reset()
