"""The node's service as a cell sees it, hostile cells included: real gRPC on a Unix socket, nodes in memory."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
import trio

from edgellm.cluster.member import BLOCKS_SOCKET
from edgellm.kv.service import MAX_CALLS_AT_ONCE, PART_BYTES
from edgellm.wire import blocks_pb2 as pb
from edgellm.wire import blocks_pb2_grpc
from tests.unit.kv_in_memory import NAMES, PIECE, TOKENS, Asker, Node, some_piece, swarm

REGION = pb.Region(first_layer=0, end_layer=8, first_head=0, end_head=4)
T = TypeVar("T")


@dataclass
class Cell:
    """A cell's side."""

    stub: blocks_pb2_grpc.BlocksStub
    node: Node

    async def find(self, *names: bytes, timeout_s: float = 5) -> pb.FindReply:
        request = pb.FindRequest(names=names, region=REGION, chunk_tokens=TOKENS)
        return await call(lambda: self.stub.Find(request, timeout=timeout_s))

    async def store(self, name: bytes, content: bytes = PIECE, region: pb.Region = REGION) -> bool:
        return (await call(lambda: self.stub.Store(parts(name, content, region), timeout=5))).kept

    async def fetch(self, name: bytes) -> bytes:
        request = pb.FetchRequest(name=name, region=REGION)
        return await call(lambda: b"".join(part.data for part in self.stub.Fetch(request, timeout=5)))


async def call(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


def parts(name: bytes, content: bytes, region: pb.Region = REGION) -> Iterator[pb.StorePart]:
    yield pb.StorePart(name=name, region=region, data=content[:PART_BYTES])
    for start in range(PART_BYTES, len(content), PART_BYTES):
        yield pb.StorePart(data=content[start : start + PART_BYTES])


@asynccontextmanager
async def cells(directory: Path, count: int = 2) -> AsyncIterator[tuple[Asker, list[Cell]]]:
    """One cluster of members on a host each."""
    from contextlib import AsyncExitStack

    async with swarm(directory) as s, s.asker() as asker, AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(s.host()) for _ in range(count)]
        stack.enter_context(asker.tracker.track(asker.scope, [node.address for node in nodes]))
        made = []
        for index, node in enumerate(nodes):
            socket = directory / f"{index}.{BLOCKS_SOCKET}"
            await stack.enter_async_context(node.kv.serve(asker.sharing(), socket))
            channel = stack.enter_context(grpc.insecure_channel(f"unix:{socket}"))
            made.append(Cell(blocks_pb2_grpc.BlocksStub(channel), node))  # type: ignore[no-untyped-call]
        yield asker, made


async def refused(work: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        await call(work)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code()


async def test_stored_by_one_cell_found_and_fetched_by_another(tmp_path: Path) -> None:
    async with cells(tmp_path) as (_, [alice, bob]):
        big = some_piece((20 << 20) + 123)
        assert await alice.store(NAMES[0])
        assert await alice.store(NAMES[1], big)
        with trio.fail_after(3):
            while len((found := await bob.find(*NAMES[:3])).chunks) < 2:
                await trio.sleep(0.05)
        assert [piece.holder for chunk in found.chunks for piece in chunk.pieces] == [alice.node.peer] * 2
        assert [chunk.pieces[0].size_bytes for chunk in found.chunks] == [len(PIECE), len(big)]
        assert await bob.fetch(NAMES[0]) == PIECE
        assert await bob.fetch(NAMES[1]) == big
        report = pb.ReportRequest(
            name=NAMES[0], region=REGION, holder=alice.node.peer, outcome="used", tokens=TOKENS
        )
        await call(lambda: bob.stub.Report(report, timeout=5))
        figures = bob.node.holdings.figures.take()
        assert figures["used_tokens"] == TOKENS
        assert figures["bytes_in"] == len(PIECE) + len(big)
        # The node's own are said to come from nobody else.
        own = await alice.find(NAMES[0])
        assert own.chunks[0].pieces[0].holder == ""


async def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    async with cells(tmp_path, 1) as (_, [cell]):
        assert not (await cell.find(*NAMES)).chunks
        request = pb.FetchRequest(name=NAMES[0], region=REGION)
        assert await refused(lambda: list(cell.stub.Fetch(request, timeout=5))) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "request_",
    [
        pb.FindRequest(names=[b"short"], region=REGION),
        pb.FindRequest(names=[NAMES[0]]),
        pb.FindRequest(names=[NAMES[0]], region=pb.Region(first_layer=5, end_layer=2, end_head=1)),
    ],
)
async def test_a_question_that_is_none_is_refused(tmp_path: Path, request_: pb.FindRequest) -> None:
    async with cells(tmp_path, 1) as (_, [cell]):
        assert await refused(lambda: cell.stub.Find(request_)) is grpc.StatusCode.INVALID_ARGUMENT
        assert await cell.store(NAMES[0])


async def test_reports_of_what_was_never_fetched_change_nothing(tmp_path: Path) -> None:
    async with cells(tmp_path) as (_, [alice, bob]):
        assert await alice.store(NAMES[0])
        lie = pb.ReportRequest(name=NAMES[0], region=REGION, holder=alice.node.peer, outcome="not authentic")
        await call(lambda: bob.stub.Report(lie, timeout=5))
        assert bob.node.holdings.figures.take().get("verify_failures", 0) == 0
        odd = pb.ReportRequest(name=NAMES[0], region=REGION, outcome="wonderful")
        assert await refused(lambda: bob.stub.Report(odd)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_piece_that_is_too_large_is_not_kept(tmp_path: Path) -> None:
    async with cells(tmp_path, 1) as (_, [cell]):
        assert not await cell.store(NAMES[0], bytes(65 << 20))
        assert not await cell.store(NAMES[0], b"")
        assert not (await cell.find(NAMES[0])).chunks
        with trio.fail_after(2):
            while cell.node.kv._sharings[0]._storing:
                await trio.sleep(0.01)


async def test_twelve_questions_that_hang_all_end_in_time(tmp_path: Path) -> None:
    async with cells(tmp_path, 1) as (asker, [cell]):
        assert await cell.store(NAMES[0])
        cell.node.network._hub.freeze(asker.network.peer)
        begun = trio.current_time()
        chunks = []

        async def ask() -> None:
            chunks.append(len((await cell.find(*NAMES[:3])).chunks))

        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(ask)
        assert chunks == [1] * 12
        assert trio.current_time() - begun < 2.5
        assert await cell.fetch(NAMES[0]) == PIECE


async def test_more_calls_than_are_served_are_refused_at_once(tmp_path: Path) -> None:
    async with cells(tmp_path, 1) as (_, [cell]):
        hold = threading.Event()

        def endless(name: bytes) -> Iterator[pb.StorePart]:
            yield pb.StorePart(name=name, region=REGION, data=b"x")
            hold.wait(20)

        calls = [cell.stub.Store.future(endless(NAMES[0])) for _ in range(MAX_CALLS_AT_ONCE + 8)]
        try:
            with trio.fail_after(5):
                while sum(call.done() for call in calls) < 8:
                    await trio.sleep(0.05)
            codes = {call.code() for call in calls if call.done()}
            assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        finally:
            hold.set()
            for one in calls:
                one.cancel()
        with trio.fail_after(5):
            while True:
                try:
                    assert await cell.store(NAMES[1])
                    break
                except grpc.RpcError:
                    await trio.sleep(0.05)


async def test_the_end_of_a_lease_ends_calls_that_are_under_way(tmp_path: Path) -> None:
    async with cells(tmp_path, 1) as (asker, [cell]):
        cell.node.network._hub.freeze(asker.network.peer)
        request = pb.FindRequest(names=NAMES[:1], region=REGION, chunk_tokens=TOKENS)
        waiting = cell.stub.Find.future(request)
        await trio.sleep(0.1)
        begun = trio.current_time()
    assert trio.current_time() - begun < 1.5
    assert waiting.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_a_socket_that_the_cell_replaces_hurts_nobody_else(tmp_path: Path) -> None:
    async with cells(tmp_path) as (_, [alice, bob]):
        (tmp_path / f"0.{BLOCKS_SOCKET}").unlink()
        (tmp_path / f"0.{BLOCKS_SOCKET}").symlink_to("/etc/passwd")
        assert await bob.store(NAMES[0])
    assert (tmp_path / f"0.{BLOCKS_SOCKET}").is_symlink()
    assert Path("/etc/passwd").exists()
    assert alice.node.peer != bob.node.peer
