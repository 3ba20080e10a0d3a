"""Members of one cluster on one machine, each with a real carrier and ready for a cell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio
import trio.testing

from edgellm.cluster.switchboard import PlanInForce, Switchboard
from edgellm.overlay.address import member_addresses
from edgellm.overlay.overlay import (
    OpenStream,
    Overlay,
    OverlayMember,
    OverlaySpec,
    bind_listener,
    make_member_identity,
    open_overlay,
)
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import Stream
from edgellm.p2p.node import NodeConfig, open_node
from edgellm.types.plan import ClusterPlan, Member

# Sealed links; streams in memory; streams of real libp2p nodes.
Way = Literal["tls", "stream", "libp2p"]
SUBNET = "10.88.7.0/24"


@dataclass(frozen=True)
class RunningMember:
    address: str
    runtime: Path
    overlay: Overlay
    endpoint: tuple[str, int]
    known: OverlayMember
    """What the others know of it."""


class PipeStream:
    """One end of a stream in memory."""

    def __init__(self, stream: trio.abc.ReceiveStream, to: trio.abc.SendStream) -> None:
        self._stream = trio.StapledStream(to, stream)

    @property
    def peer(self) -> str:
        return "the other end"

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def reset(self) -> None:
        await self._stream.aclose()


def stream_pair() -> tuple[PipeStream, PipeStream]:
    forth_send, forth_receive = trio.testing.lockstep_stream_one_way_pair()
    back_send, back_receive = trio.testing.lockstep_stream_one_way_pair()
    return PipeStream(back_receive, forth_send), PipeStream(forth_receive, back_send)


@asynccontextmanager
async def members(tmp_path: Path, count: int = 2, way: Way = "tls") -> AsyncIterator[list[RunningMember]]:
    """`count` members. Unless the way is "tls" nobody has an endpoint, so that all goes over streams."""
    addresses = member_addresses(7, count)
    identities = [make_member_identity() for _ in range(count)]
    listeners = [bind_listener("127.0.0.1") for _ in range(count)]
    endpoints = [listener.getsockname() for listener in listeners]
    plan = tuple(
        OverlayMember(address, identity.certificate_der, (endpoint,) if way == "tls" else ())
        for address, identity, endpoint in zip(addresses, identities, endpoints, strict=True)
    )
    running: list[RunningMember] = []
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        stack.callback(nursery.cancel_scope.cancel)
        nodes = await _nodes(stack, addresses) if way == "libp2p" else None

        def in_memory(source: str) -> OpenStream:
            async def open_stream(address: str, port: int) -> Stream:
                ours, theirs = stream_pair()
                member = next(member for member in running if member.address == address)
                nursery.start_soon(member.overlay.accept_stream, theirs, source, port)
                return ours

            return open_stream

        for index, address in enumerate(addresses):
            runtime = tmp_path / str(index)
            runtime.mkdir()
            if nodes:
                switchboard, cluster = nodes[index]
                opener = switchboard.opener(PlanInForce(cluster), address)
            else:
                opener = in_memory(address)
            overlay = await stack.enter_async_context(
                open_overlay(OverlaySpec(address, plan), runtime, listeners[index], identities[index], opener)
            )
            if nodes:
                stack.enter_context(switchboard.connect(PlanInForce(cluster), address, overlay))
            running.append(RunningMember(address, runtime, overlay, endpoints[index], plan[index]))
        yield running


async def _nodes(stack: AsyncExitStack, addresses: tuple[str, ...]) -> list[tuple[Switchboard, ClusterPlan]]:
    """A libp2p node for each address, and the plan that they are members of."""
    networks = [
        await stack.enter_async_context(
            open_node(NodeConfig(Identity.generate(), listen=("/ip4/127.0.0.1/tcp/0",)))
        )
        for _ in addresses
    ]
    plan = ClusterPlan(
        cluster="07",
        digest="",
        tensor_parallel=1,
        members=tuple(
            Member(
                peer=network.peer,
                address=address,
                overlay_certificate=b"",
                overlay_endpoints=(),
                addresses=tuple(said.rsplit("/p2p/", 1)[0] for said in network.addresses),
            )
            for network, address in zip(networks, addresses, strict=True)
        ),
        fabric="overlay",
        max_model_len=0,
        kv_cache_bytes=0,
        subnet=SUBNET,
        cluster_token="",
        issued_at=0.0,
    )
    return [(Switchboard(network), plan) for network in networks]
