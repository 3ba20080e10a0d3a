"""Sharing from a requester's question to its hosts' cells and back: plans, sockets, trackers, and what is told in the end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import trio

from edgellm.errors import HostLost, UsageError, unwrapped
from edgellm.kv.index import open_index
from edgellm.kv.node import KvNode
from edgellm.kv.scope import ScopeKeys
from edgellm.kv.tracker import Tracker
from edgellm.paths import Paths
from edgellm.planning.fit import footprint
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import Requester, opened_cluster
from edgellm.requester.kv import KvRequester, open_kv
from edgellm.requester.prefill import PrefillRatios
from edgellm.testing.memory_network import MemoryHub, open_hub
from edgellm.testing.scripted_machine import ScriptedMachine
from edgellm.types.plan import KvSharing
from edgellm.types.request import Question, Sampling
from edgellm.wire import blocks_pb2 as pb
from edgellm.wire import blocks_pb2_grpc
from tests.unit.kv_in_memory import NAMES, PIECE, TOKENS, Node, Swarm
from tests.unit.planning_samples import model
from tests.unit.swarm_in_memory import Host, join_host, join_requester
from tests.unit.test_kv_service import REGION, Cell

SECRET = b"of this requester" + bytes(15)


@asynccontextmanager
async def two_hosts(directory: Path) -> AsyncIterator[tuple[MemoryHub, list[tuple[Host, Node]]]]:
    async with open_hub() as hub, trio.open_nursery() as nursery:
        s = Swarm(hub, directory, nursery)
        alice, bob = await join_host(hub, "alice"), await join_host(hub, "bob")
        async with s.host(network=alice.network) as of_alice, s.host(network=bob.network) as of_bob:
            alice.machine.pieces, bob.machine.pieces = of_alice.kv, of_bob.kv
            yield hub, [(alice, of_alice), (bob, of_bob)]
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def requester(hub: MemoryHub, directory: Path, secret: bytes = SECRET) -> AsyncIterator[Requester]:
    """A requester that shares; its records stay in `directory`."""
    asking = join_requester(hub, directory / "models")
    scope_id = ScopeKeys.derive(secret).scope_id
    with open_index(directory / f"{scope_id[:8].hex()}.sqlite") as index:
        kv = KvRequester(
            Tracker(asking.network, index),
            "session",
            scope_id,
            secret,
            PrefillRatios(directory / "prefill.json"),
        )
        yield replace(asking, kv=kv)


@asynccontextmanager
async def cell_of(host: Host, node: Node) -> AsyncIterator[Cell]:
    """The cell that runs on a host now, as far as its node's socket goes."""
    with trio.fail_after(2):
        while not host.machine.block_sockets:
            await trio.sleep(0.01)
    with grpc.insecure_channel(f"unix:{host.machine.block_sockets[0]}") as channel:
        yield Cell(blocks_pb2_grpc.BlocksStub(channel), node)  # type: ignore[no-untyped-call]


async def test_a_second_question_on_another_host_finds_what_the_first_computed(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (hub, [(alice, of_alice), (bob, of_bob)]):
        async with (
            requester(hub, tmp_path) as asking,
            opened_cluster(asking, "tiny", None, Wanted(peers=("alice",)), lambda _: None) as opened,
            cell_of(alice, of_alice) as cell,
        ):
            assert opened.cluster.plan.kv is not None
            assert opened.cluster.plan.kv.tracker == asking.network.peer
            assert await cell.store(NAMES[0])
        async with requester(hub, tmp_path) as asking:
            async with (
                opened_cluster(asking, "tiny", None, Wanted(peers=("bob",)), lambda _: None) as opened,
                cell_of(bob, of_bob) as cell,
            ):
                found = await cell.find(NAMES[0], NAMES[1])
                assert [chunk.pieces[0].holder for chunk in found.chunks] == [alice.network.peer]
                assert await cell.fetch(NAMES[0]) == PIECE
                report = pb.ReportRequest(
                    name=NAMES[0], region=REGION, holder=alice.network.peer, outcome="used", tokens=TOKENS
                )
                await trio.to_thread.run_sync(lambda: cell.stub.Report(report, timeout=5))
            assert opened.kv is not None
            assert opened.kv.tokens == {alice.network.peer: TOKENS}
        assert not alice.machine.block_sockets


async def test_another_requester_on_the_same_host_finds_nothing(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (hub, [(alice, of_alice), _]):
        for secret, there in ((SECRET, False), (b"another" * 4 + b"....", False), (SECRET, True)):
            async with (
                requester(hub, tmp_path, secret) as asking,
                opened_cluster(asking, "tiny", None, Wanted(peers=("alice",)), lambda _: None),
                cell_of(alice, of_alice) as cell,
            ):
                assert bool((await cell.find(NAMES[0])).chunks) == there
                if secret == SECRET:
                    assert await cell.store(NAMES[0])
            with trio.fail_after(2):
                while not alice.free:
                    await trio.sleep(0.01)


async def test_without_sharing_there_is_no_socket_and_nothing_in_the_plan(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (hub, [(alice, _), (bob, _)]):
        asking = join_requester(hub, tmp_path / "models")
        async with opened_cluster(
            asking, "tiny", None, Wanted(pipeline_parallel=2), lambda _: None
        ) as opened:
            assert opened.cluster.plan.kv is None
            assert opened.kv is None
            assert len(alice.machine.cells) == len(bob.machine.cells) == 1
            assert not alice.machine.block_sockets
            assert not bob.machine.block_sockets


async def test_a_host_that_cannot_make_its_socket_still_runs_the_cluster(tmp_path: Path) -> None:
    class Crowded:
        def __init__(self, node: KvNode) -> None:
            self.node = node

        @asynccontextmanager
        async def serve(self, kv: KvSharing, socket: Path) -> AsyncIterator[None]:
            async with self.node.serve(kv, socket / "not a directory"):
                yield

    async with two_hosts(tmp_path) as (hub, [(alice, of_alice), _]):
        alice.machine.pieces = Crowded(of_alice.kv)
        async with (
            requester(hub, tmp_path) as asking,
            opened_cluster(asking, "tiny", None, Wanted(peers=("alice",)), lambda _: None),
        ):
            # The scripted engine is ready without its workers.
            with trio.fail_after(5):
                while not alice.machine.cells:
                    await trio.sleep(0.01)
            assert not alice.machine.block_sockets


async def test_why_a_cell_cannot_be_made_is_told_where_it_would_have_shared(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (hub, [(alice, _), _]):
        alice.machine.refuse = "no namespaces here"
        wanted = Wanted(peers=("alice",), patience_s=0.0)
        with pytest.raises(HostLost, match="no namespaces here"), unwrapped():
            async with (
                requester(hub, tmp_path) as asking,
                opened_cluster(asking, "tiny", None, wanted, lambda _: None),
            ):
                await trio.sleep(5)


async def test_leaving_waits_no_longer_for_members_than_it_says(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (hub, [(_, of_alice), _]):

        async def hang(peer: str, scope: bytes) -> None:
            await trio.sleep_forever()

        of_alice.kv.settle = hang  # type: ignore[method-assign]
        async with requester(hub, tmp_path) as asking:
            async with opened_cluster(asking, "tiny", None, Wanted(peers=("alice",)), lambda _: None):
                begun = time.monotonic()
            assert time.monotonic() - begun < 3
        assert isinstance(asking.machine, ScriptedMachine)
        assert not asking.machine.cells


async def test_a_user_has_one_scope_and_one_memory_of_it(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "state", tmp_path / "cache", tmp_path / "run")
    for directory in (paths.state, paths.cache):
        directory.mkdir()
    async with open_hub() as hub:
        with open_kv(hub.join(), paths, "session") as first, open_kv(hub.join(), paths, "session") as second:
            assert first.scope_id == second.scope_id == ScopeKeys.derive(first.secret).scope_id
            assert first.secret.hex() not in repr(first)
            assert first.sharing(hub.join(), "digest", 10.0).prefill_tok_s == 10.0
        with open_kv(hub.join(), paths, "public") as public:
            assert public.scope_id != first.scope_id
        with pytest.raises(UsageError, match="private swarm"), open_kv(hub.join(), paths, "swarm"):
            pass


async def test_where_nothing_is_said_long_prompts_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The models of these hosts have no tokenizer.
    monkeypatch.setattr(
        "edgellm.requester.cluster.count_prompt", lambda directory, question: len(question.text.split())
    )
    async with two_hosts(tmp_path) as (hub, [(alice, _), _]), requester(hub, tmp_path) as asking:
        assert asking.kv is not None
        asking = replace(asking, kv=replace(asking.kv, least_prompt_tokens=512))
        for words, shares in ((3, False), (600, True)):
            alice.machine.block_sockets.clear()
            question = Question(text="sky " * words, sampling=Sampling(max_tokens=4))
            wanted = Wanted(peers=("alice",))
            async with opened_cluster(asking, "tiny", question, wanted, lambda _: None) as opened:
                assert opened.request.shares_kv is shares
                assert (opened.kv is not None) is shares


def test_the_memory_of_the_cache_is_planned_for() -> None:
    alone, sharing = (
        footprint(
            model(), tensor_parallel=2, context=1024, sequences=1, device_kind="cpu", shares_kv=shares_kv
        )
        for shares_kv in (False, True)
    )
    assert sharing.overhead_bytes - alone.overhead_bytes == (512 + 230) * 2**20 // 2
