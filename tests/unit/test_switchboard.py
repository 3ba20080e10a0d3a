"""Overlay streams between members of a signed plan, and everybody else's refusal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio
from trio.testing import MockClock

from edgellm.cluster.switchboard import PROTOCOL, PlanInForce, Switchboard
from edgellm.errors import NetworkError
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Stream
from edgellm.testing.memory_network import MemoryHub, MemoryNetwork, open_hub
from edgellm.types.plan import ClusterPlan, Member
from edgellm.wire import wire_pb2

HEAD, WORKER = "10.88.1.1", "10.88.1.2"


@dataclass
class Echo:
    """Answers each stream with what it is, then with what it says (`StreamAcceptor`)."""

    seen: list[tuple[str, str, int]] = field(default_factory=list)

    async def accept_stream(self, stream: Stream, source_address: str, port: int) -> None:
        self.seen.append((stream.peer, source_address, port))
        await stream.send_all(b"welcome ")
        while data := await stream.receive_some():
            await stream.send_all(data)
        await stream.aclose()


@dataclass
class Pair:
    hub: MemoryHub
    head: MemoryNetwork
    worker: MemoryNetwork
    plan: ClusterPlan
    echo: Echo


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    async with open_hub() as hub:
        head, worker = hub.join(), hub.join()
        members = (Member(head.peer, HEAD, b"", ()), Member(worker.peer, WORKER, b"", ()))
        plan = ClusterPlan("c" * 32, "ab" * 32, 1, members, "overlay", 256, 1, "10.88.1.0/24", "t" * 32, 0.0)
        echo = Echo()
        with Switchboard(worker).connect(PlanInForce(plan), WORKER, echo):
            yield Pair(hub, head, worker, plan, echo)


async def read_all(stream: Stream) -> bytes:
    received = b""
    while data := await stream.receive_some():
        received += data
    return received


async def test_members_are_connected(autojump_clock: MockClock) -> None:
    async with pair() as two:
        stream = await Switchboard(two.head).opener(PlanInForce(two.plan), HEAD)(WORKER, 6379)
        await stream.send_all(b"hello")
        await stream.aclose()
        assert await read_all(stream) == b"welcome hello"
        assert two.echo.seen == [(two.head.peer, HEAD, 6379)]


async def test_bytes_right_behind_the_opening_are_kept(autojump_clock: MockClock) -> None:
    async with pair() as two:
        stream = await two.head.open_stream(two.worker.peer, PROTOCOL)
        messages = MessageStream(stream)
        opening = wire_pb2.OverlayOpen(
            cluster=two.plan.cluster, source_address=HEAD, target_address=WORKER, port=1
        )
        await messages.send(opening)
        await stream.send_all(b"at once")
        await stream.aclose()
        assert not (await messages.receive(wire_pb2.OverlayReply)).error
        received = b""
        while data := await messages.receive_some():
            received += data
        assert received == b"welcome at once"


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster": "d" * 32},
        {"source_address": "10.88.1.9"},
        {"source_address": WORKER},
        {"target_address": "10.88.1.9"},
        {"target_address": HEAD},
        {"port": 0},
        {"port": 65536},
    ],
)
async def test_an_opening_that_is_not_a_members_is_refused(
    changes: dict[str, object], autojump_clock: MockClock
) -> None:
    async with pair() as two:
        fields: dict[str, object] = {
            "cluster": two.plan.cluster,
            "source_address": HEAD,
            "target_address": WORKER,
            "port": 6379,
        }
        messages = MessageStream(await two.head.open_stream(two.worker.peer, PROTOCOL))
        await messages.send(wire_pb2.OverlayOpen(**{**fields, **changes}))
        with pytest.raises(NetworkError):
            reply = await messages.receive(wire_pb2.OverlayReply)
            raise NetworkError(reply.error) if reply.error else AssertionError("it was let in")
        assert two.echo.seen == []


async def test_a_stranger_who_knows_the_plan_is_refused(autojump_clock: MockClock) -> None:
    async with pair() as two:
        stranger = two.hub.join()
        with pytest.raises(NetworkError):
            await Switchboard(stranger).opener(PlanInForce(two.plan), HEAD)(WORKER, 6379)
        assert two.echo.seen == []


async def test_the_line_is_dead_when_the_cluster_ends(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        head, worker = hub.join(), hub.join()
        members = (Member(head.peer, HEAD, b"", ()), Member(worker.peer, WORKER, b"", ()))
        plan = ClusterPlan("c" * 32, "ab" * 32, 1, members, "overlay", 256, 1, "10.88.1.0/24", "t" * 32, 0.0)
        board = Switchboard(worker)
        with board.connect(PlanInForce(plan), WORKER, Echo()):
            pass
        with pytest.raises(NetworkError):
            await Switchboard(head).opener(PlanInForce(plan), HEAD)(WORKER, 6379)


async def test_two_clusters_on_one_node_stay_apart(autojump_clock: MockClock) -> None:
    async with pair() as two:
        other = replace(two.plan, cluster="e" * 32)
        board = Switchboard(two.worker)
        first, second = Echo(), Echo()
        with (
            board.connect(PlanInForce(two.plan), WORKER, first),
            board.connect(PlanInForce(other), WORKER, second),
        ):
            stream = await Switchboard(two.head).opener(PlanInForce(other), HEAD)(WORKER, 80)
            await stream.aclose()
            await read_all(stream)
        assert (len(first.seen), len(second.seen)) == (0, 1)


async def test_an_address_outside_the_cluster_is_nobodys(autojump_clock: MockClock) -> None:
    async with pair() as two:
        with pytest.raises(NetworkError, match=r"10\.88\.1\.7 is no member"):
            await Switchboard(two.head).opener(PlanInForce(two.plan), HEAD)("10.88.1.7", 1)


async def test_a_member_that_is_silent_costs_a_bounded_time(autojump_clock: MockClock) -> None:
    async with pair() as two:
        two.hub.freeze(two.worker.peer)
        with trio.fail_after(30), pytest.raises(NetworkError):
            await Switchboard(two.head).opener(PlanInForce(two.plan), HEAD)(WORKER, 6379)
