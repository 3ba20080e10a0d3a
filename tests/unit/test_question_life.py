"""The life of a question, from discovery to nothing left, without cells and without a network."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import trio

from edgellm.errors import CellError, EngineError, HostLost, PlanError, UsageError
from edgellm.leasing.hold import LeasesRefused
from edgellm.requester.ask import ask
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import Requester, opened_cluster
from edgellm.testing.memory_network import MemoryHub, open_hub
from edgellm.testing.scripted_engine import Script
from edgellm.testing.scripted_machine import ScriptedMachine
from edgellm.types.request import Question, Sampling
from tests.unit.swarm_in_memory import TINY, Host, Recorder, join_host, join_requester

QUESTION = Question(text="why is the sky blue", sampling=Sampling(max_tokens=5))
LONG = Question(text="why is the sky blue", sampling=Sampling(max_tokens=400))
TWO_STAGES = Wanted(pipeline_parallel=2)
IMPATIENT = Wanted(pipeline_parallel=2, patience_s=0.0)


@asynccontextmanager
async def swarm(
    store: Path, script: Script | None = None
) -> AsyncIterator[tuple[MemoryHub, Host, Host, Requester]]:
    """Two hosts and a requester. Afterwards nothing may be left of the question anywhere."""
    async with open_hub() as hub:
        alice, bob = await join_host(hub, "alice"), await join_host(hub, "bob")
        requester = join_requester(hub, store, script)
        yield hub, alice, bob, requester
        await until(lambda: alice.free and bob.free)
        assert not head(requester).cells


def head(requester: Requester) -> ScriptedMachine:
    assert isinstance(requester.machine, ScriptedMachine)
    return requester.machine


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.01)


async def test_a_question_is_answered_by_all_layers(tmp_path: Path) -> None:
    async with swarm(tmp_path) as (_, alice, bob, requester):
        told = Recorder()
        await ask(requester, "tiny", QUESTION, TWO_STAGES, told)
        assert told.text == "the sky is blue because "
        assert [piece.token_ids for piece in told.pieces] == [(0,), (1,), (2,), (3,), (4,)]
        assert told.pieces[-1].finish_reason == "length"
        assert sorted(name for name, _, _ in told.stages) == ["alice", "bob"]
        assert [(first, end) for _, first, end in told.stages] == [(0, 4), (4, 8)]
        phases = [note.phase for note in told.notes]
        assert phases[:3] == ["discover", "plan", "lease"]
        assert "import" in phases
        assert alice.server.book.models == bob.server.book.models


async def test_the_heads_copy_of_the_model_has_no_weights_and_is_kept(tmp_path: Path) -> None:
    async with swarm(tmp_path) as (_hub, alice, bob, requester):
        told = Recorder()
        await ask(requester, "tiny", QUESTION, Wanted(), told)
        assert told.opened is not None
        held = {path.name for path in told.opened.model.directory.iterdir()}
        assert "config.json" in held
        assert "tokenizer.json" in held
        assert not [name for name in held if name.endswith(".safetensors")]
        for host in (alice, bob):
            del host.network.handlers["/edgellm/model/1"]
        await ask(requester, "tiny", QUESTION, Wanted(), Recorder())


async def test_a_host_that_refuses_is_planned_around(tmp_path: Path) -> None:
    async with swarm(tmp_path) as (_, alice, _bob, requester):
        # Its advert, made before, still says that it is free.
        alice.server.book = alice.server.book.drain()
        told = Recorder()
        await ask(requester, "tiny", QUESTION, Wanted(peers=()), told)
        assert [name for name, _, _ in told.stages] == ["bob"]


async def test_all_hosts_refuse(tmp_path: Path) -> None:
    async with swarm(tmp_path) as (_, alice, bob, requester):
        for host in (alice, bob):
            host.server.book = host.server.book.drain()
        told = Recorder()
        with pytest.raises(LeasesRefused, match="no new leases"):
            await ask(requester, "tiny", QUESTION, Wanted(), told)
        refused = [note.detail for note in told.notes if "refused" in note.detail]
        assert {line.split()[0] for line in refused} == {"alice", "bob"}


@pytest.mark.parametrize("fault", ["kill", "cut"])
async def test_a_host_that_dies_while_the_model_loads_is_named(fault: str, tmp_path: Path) -> None:
    script = Script(load_s=0.6)
    async with swarm(tmp_path, script) as (hub, _alice, bob, requester):
        told = Recorder()
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                await until(lambda: any(note.phase == "import" for note in told.notes))
                getattr(hub, fault)(bob.network.peer)

            nursery.start_soon(fail)
            with pytest.raises(HostLost, match="bob"):
                await ask(requester, "tiny", QUESTION, TWO_STAGES, told)
        assert not told.pieces


@pytest.mark.parametrize("fault", ["kill", "cut"])
async def test_a_host_that_dies_in_the_middle_of_an_answer_is_named(fault: str, tmp_path: Path) -> None:
    script = Script(token_s=0.02)
    async with swarm(tmp_path, script) as (hub, alice, _bob, requester):
        told = Recorder()
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                await told.began.wait()
                getattr(hub, fault)(alice.network.peer)

            nursery.start_soon(fail)
            with pytest.raises(HostLost, match="alice"):
                await ask(requester, "tiny", LONG, IMPATIENT, told)
        assert 0 < len(told.pieces) < 400


async def test_a_worker_cell_that_dies_ends_the_question_of_one_who_does_not_wait(tmp_path: Path) -> None:
    async with swarm(tmp_path, Script(token_s=0.02)) as (_, _alice, bob, requester):
        told = Recorder()
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                await told.began.wait()
                bob.machine.cells[0].die(137)

            nursery.start_soon(fail)
            with pytest.raises(
                HostLost, match=r"host bob .* ended its lease: its cell ended with status 137"
            ):
                await ask(requester, "tiny", LONG, IMPATIENT, told)


async def test_the_heads_own_cell_dies(tmp_path: Path) -> None:
    async with swarm(tmp_path, Script(token_s=0.02)) as (_, _alice, _bob, requester):
        told = Recorder()
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                await told.began.wait()
                head(requester).cells[0].die(9)

            nursery.start_soon(fail)
            with pytest.raises(CellError, match="status 9"):
                await ask(requester, "tiny", LONG, TWO_STAGES, told)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (Script(misplace=True), "elsewhere than planned"),
        (Script(fail_load="no kernel for this device"), "no kernel for this device"),
    ],
)
async def test_an_engine_that_fails_to_load_says_why(script: Script, why: str, tmp_path: Path) -> None:
    async with swarm(tmp_path, script) as (*_, requester):
        with pytest.raises(EngineError, match=why):
            await ask(requester, "tiny", QUESTION, TWO_STAGES, Recorder())


async def test_a_machine_without_a_sandbox_says_so(tmp_path: Path) -> None:
    async with swarm(tmp_path) as (*_, requester):
        head(requester).refuse = "user namespaces are off"
        with pytest.raises(CellError, match="user namespaces"):
            await ask(requester, "tiny", QUESTION, TWO_STAGES, Recorder())


async def test_a_prompt_over_the_context_reserves_nothing(tmp_path: Path) -> None:
    async with swarm(tmp_path) as (*_, requester):
        told = Recorder()
        with pytest.raises(UsageError, match=r"the prompt has \d+ tokens, the context of tiny only 2048"):
            await ask(requester, "tiny", Question(text="sky " * 3000), Wanted(), told)
        assert "leased" not in [note.phase for note in told.notes]


async def test_what_only_the_engine_finds_too_long_is_the_users_error(tmp_path: Path) -> None:
    async with swarm(tmp_path, Script(max_model_len=3)) as (*_, requester):
        with pytest.raises(UsageError, match="the context only 3"):
            await ask(requester, "tiny", QUESTION, Wanted(), Recorder())


async def test_two_versions_of_a_model_never_share_a_cluster(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(TINY, other)
    with (other / "config.json").open("a") as file:
        file.write("\n")
    async with open_hub() as hub:
        alice, bob = await join_host(hub, "alice"), await join_host(hub, "bob", directory=other)
        requester = join_requester(hub, tmp_path / "store")
        with pytest.raises(PlanError, match="2 different versions of tiny") as caught:
            await ask(requester, "tiny", QUESTION, TWO_STAGES, Recorder())
        assert "alice" in str(caught.value)
        assert "bob" in str(caught.value)
        told = Recorder()
        await ask(requester, "tiny", QUESTION, Wanted(), told)
        assert len(told.stages) == 1
        await until(lambda: alice.free and bob.free)


async def test_a_cancelled_question_ends_in_the_engine_and_on_the_hosts(tmp_path: Path) -> None:
    script = Script(token_s=0.02)
    async with swarm(tmp_path, script) as (_, alice, bob, requester):
        told = Recorder()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, requester, "tiny", LONG, TWO_STAGES, told)
            await told.began.wait()
            assert script.running == 1
            assert len(alice.machine.cells) == len(bob.machine.cells) == 1
            nursery.cancel_scope.cancel()
        await until(lambda: script.running == 0)
    assert len(told.pieces) < 400


async def test_closing_the_answer_aborts_the_request_while_the_engine_lives_on(tmp_path: Path) -> None:
    script = Script(token_s=0.02)
    async with (
        swarm(tmp_path, script) as (*_, requester),
        opened_cluster(requester, "tiny", None, Wanted(), lambda _: None) as opened,
    ):
        async with aclosing(opened.cluster.engine.generate(LONG, "first")) as pieces:
            await anext(pieces)
        await until(lambda: script.running == 0)
        texts = [piece.text async for piece in opened.cluster.engine.generate(QUESTION, "second")]
        assert len(texts) == 5
