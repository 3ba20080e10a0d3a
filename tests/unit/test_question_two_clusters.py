"""The life of a question to two clusters, one that computes the prompt and one that answers, without cells and a network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from edgellm.cluster.head import Progress
from edgellm.errors import EdgeError, HostLost, PlanError
from edgellm.leasing.hold import LeasesRefused
from edgellm.requester.ask import ask
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import Choice, OpenedCluster, Requester, opened
from edgellm.testing.memory_network import MemoryHub
from edgellm.testing.scripted_engine import Script
from edgellm.testing.scripted_machine import ScriptedMachine
from edgellm.types.request import Question, Sampling
from tests.unit.swarm_in_memory import Host, Recorder, join_requester
from tests.unit.test_kv_cluster import requester, two_hosts

QUESTION = Question(text="why is the sky blue", sampling=Sampling(max_tokens=5))
LONG = Question(text="why is the sky blue", sampling=Sampling(max_tokens=400))
TWO = Wanted(disaggregate="always")
STEPS = ["bring-up to prefill", "bring-up to decode", "prefill", "KV blocks kept", "first token", "decode"]


@asynccontextmanager
async def swarm(
    directory: Path, script: Script | None = None
) -> AsyncIterator[tuple[MemoryHub, Host, Host, Requester]]:
    """Two hosts that share KV, and a requester. Afterwards nothing may be left of the question anywhere."""
    async with two_hosts(directory) as (hub, [(alice, _), (bob, _)]), requester(hub, directory) as asking:
        machine = ScriptedMachine(script or Script())
        yield hub, alice, bob, replace(asking, machine=machine)
        await both_free(alice, bob)
        assert not machine.cells


async def both_free(alice: Host, bob: Host) -> None:
    with trio.fail_after(5):
        while not (alice.free and bob.free):
            await trio.sleep(0.01)


def hosts_of(told: Recorder) -> dict[str, str]:
    return {span.what: "+".join(span.who) for span in told.spans}


async def test_one_host_computes_the_prompt_and_the_other_answers(tmp_path: Path) -> None:
    script = Script()
    async with swarm(tmp_path, script) as (_, _alice, _bob, asking):
        told = Recorder()
        await ask(asking, "tiny", QUESTION, TWO, told)
    assert told.text == "the sky is blue because "
    assert [piece.token_ids for piece in told.pieces] == [(0,), (1,), (2,), (3,), (4,)]
    assert script.asked == [1, 5]
    who = hosts_of(told)
    assert {who["prefill"], who["decode"]} == {"alice", "bob"}
    assert who["decode"] == told.stages[0][0]
    assert [step for step in STEPS if step in who] == STEPS
    spans = {span.what: span for span in told.spans}
    assert spans["prefill"].end_s <= spans["first token"].begin_s
    assert spans["first token"].end_s <= spans["decode"].end_s
    assert spans["prefill"].detail == "5 prompt tokens"
    assert spans["decode"].detail == "5 tokens"
    assert told.asked_s_ago >= spans["prefill"].seconds
    # Both clusters come up at the same time, and who is at what can be told apart.
    assert {note.who for note in told.notes} >= {"head (prefill)", "head (decode)"}


@pytest.mark.parametrize("mode", ["auto", "never"])
async def test_equal_hosts_are_one_cluster_unless_demanded(mode: str, tmp_path: Path) -> None:
    script = Script()
    async with swarm(tmp_path, script) as (_, _alice, _bob, asking):
        told = Recorder()
        await ask(asking, "tiny", QUESTION, Wanted(disaggregate=mode), told)  # type: ignore[arg-type]
    assert script.asked == [5]
    assert not told.spans
    plans = [note.detail for note in told.notes if "one cluster prefills and decodes" in note.detail]
    assert bool(plans) == (mode == "auto")


async def test_a_host_that_cannot_prefill_costs_no_answer(tmp_path: Path) -> None:
    class Refusing(Recorder):
        """Has the host that is to prefill refuse it."""

        def progress(self, progress: Progress) -> None:
            super().progress(progress)
            if progress.detail.startswith("prefill on "):
                hosts[progress.detail.split()[2].rstrip(",")].machine.refuse = "no namespaces here"

    # The scripted engine is ready without its workers: it has to take longer than losing the host does.
    async with swarm(tmp_path, Script(load_s=0.5)) as (_, alice, bob, asking):
        hosts = {"alice": alice, "bob": bob}
        told = Refusing()
        await ask(asking, "tiny", QUESTION, TWO, told)
        assert told.text == "the sky is blue because "
        failed = next(span for span in told.spans if "no namespaces here" in span.detail)
        assert failed.what == "bring-up to prefill"
        assert hosts[failed.who[0]].machine.refuse


@pytest.mark.parametrize("fault", ["kill", "cut"])
async def test_a_host_that_dies_while_it_prefills_costs_no_answer(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What ends the wait is that the host is lost.
    monkeypatch.setattr("edgellm.planning.disaggregate.LEAST_PATIENCE_S", 1e6)
    script = Script(prefill_hangs=True)
    async with swarm(tmp_path, script) as (hub, alice, bob, asking):
        told = Recorder()
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                while 1 not in script.asked:
                    await trio.sleep(0.01)
                name = next(note.detail for note in told.notes if note.phase == "prefill")
                getattr(hub, fault)({"alice": alice, "bob": bob}[name].network.peer)

            nursery.start_soon(fail)
            with trio.fail_after(30):
                await ask(asking, "tiny", QUESTION, TWO, told)
        assert told.text == "the sky is blue because "
        assert any(span.what == "prefill" and "failed" in span.detail for span in told.spans)


async def test_a_host_that_is_lost_just_when_patience_ends_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is raised beside a cancellation is an expected error all the same."""
    monkeypatch.setattr("edgellm.planning.disaggregate.LEAST_PATIENCE_S", 0.5)
    lost: list[str] = []

    async def lose() -> None:
        try:
            await trio.sleep(0.2)
            lost.append("alice")
            raise HostLost("host alice was lost")
        finally:
            # Its cell takes its time to go.
            with trio.CancelScope(shield=True):
                await trio.sleep(1)

    @asynccontextmanager
    async def fragile(
        requester: Requester, choice: Choice, *arguments: Any, **options: Any
    ) -> AsyncIterator[OpenedCluster]:
        async with opened(requester, choice, *arguments, **options) as cluster, trio.open_nursery() as tasks:
            if choice.request.workload.answer_tokens == 1:
                tasks.start_soon(lose)
            yield cluster
            tasks.cancel_scope.cancel()

    monkeypatch.setattr("edgellm.requester.disaggregate.opened", fragile)
    async with swarm(tmp_path, Script(prefill_hangs=True)) as (_, _alice, _bob, asking):
        told = Recorder()
        with trio.fail_after(20):
            await ask(asking, "tiny", QUESTION, TWO, told)
    assert told.text == "the sky is blue because "
    assert lost


async def test_a_prefill_that_never_ends_is_waited_for_as_long_as_it_is_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgellm.planning.disaggregate.LEAST_PATIENCE_S", 0.2)
    script = Script(prefill_hangs=True)
    async with swarm(tmp_path, script) as (_, _alice, _bob, asking):
        told = Recorder()
        with trio.fail_after(10):
            await ask(asking, "tiny", QUESTION, TWO, told)
        assert told.text == "the sky is blue because "
        assert "took too long, and is done where the answer is" in [note.detail for note in told.notes]
        with trio.fail_after(5):
            while script.running:
                await trio.sleep(0.01)


async def test_a_host_that_dies_while_it_answers_is_replaced_by_the_other(tmp_path: Path) -> None:
    script = Script(token_s=0.02)
    async with swarm(tmp_path, script) as (hub, alice, bob, asking):
        told = Recorder()
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                await told.began.wait()
                hub.kill({"alice": alice, "bob": bob}[told.stages[0][0]].network.peer)

            nursery.start_soon(fail)
            await ask(asking, "tiny", LONG, TWO, told)
        assert [piece.token_ids for piece in told.pieces] == [(index,) for index in range(400)]


async def test_a_cancelled_question_ends_on_both_clusters(tmp_path: Path) -> None:
    script = Script(prefill_hangs=True, token_s=0.02)
    async with swarm(tmp_path, script) as (_, alice, bob, asking):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, asking, "tiny", LONG, TWO, Recorder())
            while not (script.asked and alice.machine.cells and bob.machine.cells):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            while script.running:
                await trio.sleep(0.01)


@pytest.mark.parametrize("mode", ["auto", "always"])
async def test_a_refusal_leads_back_to_one_cluster_unless_two_are_demanded(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgellm.planning.disaggregate.LEAST_GAIN", 0.0)
    wanted = Wanted(disaggregate=mode)  # type: ignore[arg-type]
    async with swarm(tmp_path) as (_, alice, bob, asking):

        class Late(Recorder):
            """The host that is to decode has taken no new lease since it said what it lends."""

            def progress(self, progress: Progress) -> None:
                super().progress(progress)
                if progress.detail.startswith("prefill on "):
                    host = {"alice": alice, "bob": bob}[progress.detail.split()[5]]
                    host.server.book = host.server.book.drain()

        told = Late()
        if mode == "always":
            with pytest.raises(LeasesRefused):
                await ask(asking, "tiny", QUESTION, wanted, told)
        else:
            await ask(asking, "tiny", QUESTION, wanted, told)
            assert told.text == "the sky is blue because "
            assert not told.spans


@pytest.mark.parametrize("mode", ["auto", "always"])
async def test_without_a_second_host_or_without_sharing(mode: str, tmp_path: Path) -> None:
    wanted = Wanted(peers=("alice",), disaggregate=mode)  # type: ignore[arg-type]
    async with swarm(tmp_path) as (hub, alice, bob, asking):
        for one in (asking, join_requester(hub, tmp_path / "models")):
            told = Recorder()
            error: EdgeError | None = None
            try:
                await ask(one, "tiny", QUESTION, wanted, told)
            except PlanError as refusal:
                error = refusal
            if mode == "auto":
                assert told.text == "the sky is blue because "
            else:
                assert "no two sets of hosts" in str(error)
                assert "leased" not in [note.phase for note in told.notes]
            await both_free(alice, bob)
