"""Members of one cluster on one machine, each with a real carrier and ready for a cell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio
import trio.testing

from edgellm.overlay.address import member_addresses
from edgellm.overlay.overlay import (
    Overlay,
    OverlayMember,
    OverlaySpec,
    Stream,
    bind_listener,
    make_member_identity,
    open_overlay,
)

Way = Literal["tls", "stream"]
SUBNET = "10.88.7.0/24"


@dataclass(frozen=True)
class RunningMember:
    address: str
    runtime: Path
    overlay: Overlay
    endpoint: tuple[str, int]


class PipeStream:
    """One end of a stream in memory."""

    peer = "the other end"

    def __init__(self, stream: trio.testing.MemoryReceiveStream, to: trio.testing.MemorySendStream) -> None:
        self._stream = trio.StapledStream(to, stream)

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
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
    """`count` members. With way "stream" nobody has an endpoint, so all goes over streams in memory."""
    addresses = member_addresses(7, count)
    identities = [make_member_identity() for _ in range(count)]
    listeners = [bind_listener("127.0.0.1") for _ in range(count)]
    endpoints = [listener.getsockname() for listener in listeners]
    plan = tuple(
        OverlayMember(address, identity.certificate_der, (endpoint,) if way == "tls" else ())
        for address, identity, endpoint in zip(addresses, identities, endpoints, strict=True)
    )
    running: dict[str, RunningMember] = {}
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:

        def opener(source: str):  # type: ignore[no-untyped-def]
            async def open_stream(address: str, port: int) -> Stream:
                ours, theirs = stream_pair()
                nursery.start_soon(running[address].overlay.accept_stream, theirs, source, port)
                return ours

            return open_stream

        for index, address in enumerate(addresses):
            runtime = tmp_path / str(index)
            runtime.mkdir()
            overlay = await stack.enter_async_context(
                open_overlay(
                    OverlaySpec(address, plan), runtime, listeners[index], identities[index], opener(address)
                )
            )
            running[address] = RunningMember(address, runtime, overlay, endpoints[index])
        stack.callback(nursery.cancel_scope.cancel)
        yield [running[address] for address in addresses]
