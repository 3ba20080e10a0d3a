"""What becomes of an answer whose hosts are lost, without cells and without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from edgellm.errors import HostLost, unwrapped
from edgellm.requester.ask import ask
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import OpenedCluster, Requester, opened_cluster
from edgellm.requester.recovery import silence_with_spare
from edgellm.testing.memory_network import MemoryHub, open_hub
from edgellm.testing.scripted_engine import Script
from edgellm.testing.scripted_machine import ScriptedMachine
from edgellm.types.request import Question, Sampling
from tests.unit.swarm_in_memory import Host, Recorder, join_host, join_requester

TOKENS = 150
LONG = Question(text="why is the sky blue", sampling=Sampling(max_tokens=TOKENS))
ALL = [(index,) for index in range(TOKENS)]


@dataclass
class Swarm:
    hub: MemoryHub
    hosts: dict[str, Host]
    requester: Requester
    script: Script
    told: Recorder

    @property
    def head(self) -> ScriptedMachine:
        assert isinstance(self.requester.machine, ScriptedMachine)
        return self.requester.machine

    def phases(self, *phases: str) -> list[str]:
        return [note.phase for note in self.told.notes if note.phase in phases]

    async def interrupted(self, wanted: Wanted, fault: Callable[[], None]) -> None:
        """Asks, and has something happen after the first token."""
        with unwrapped():
            async with trio.open_nursery() as nursery:

                async def fail() -> None:
                    await self.told.began.wait()
                    fault()

                nursery.start_soon(fail)
                await ask(self.requester, "tiny", LONG, wanted, self.told)


@asynccontextmanager
async def swarm(store: Path, *names: str, script: Script | None = None) -> AsyncIterator[Swarm]:
    """Afterwards nothing may be left of the question on hosts that live."""
    script = script or Script(token_s=0.01)
    async with open_hub() as hub:
        hosts = {name: await join_host(hub, name) for name in names}
        it = Swarm(hub, hosts, join_requester(hub, store, script), script, Recorder())
        yield it
        await until(lambda: all(host.free for host in hosts.values()))
        assert not it.head.cells


async def until(condition: Callable[[], bool], limit_s: float = 8.0) -> None:
    with trio.fail_after(limit_s):
        while not condition():
            await trio.sleep(0.01)


@pytest.mark.parametrize("fault", ["kill", "cut", "freeze"])
async def test_an_answer_goes_on_when_a_host_is_lost(fault: str, tmp_path: Path) -> None:
    # A frozen host is noticed by its silence alone.
    script = Script(token_s=0.05 if fault == "freeze" else 0.01)
    async with swarm(tmp_path, "alice", "bob", "carol", script=script) as it:
        lost: list[str] = []

        def fail() -> None:
            lost.append(it.told.stages[0][0])
            getattr(it.hub, fault)(it.hosts[lost[0]].network.peer)

        await it.interrupted(Wanted(pipeline_parallel=2), fail)
        assert [piece.token_ids for piece in it.told.pieces] == ALL
        assert it.phases("lost", "resumed") == ["lost", "resumed"]
        names = {name for name, _, _ in it.told.stages}
        assert names == {"alice", "bob", "carol"} - set(lost)
        assert it.script.suspends == 1


async def test_a_host_that_survives_keeps_its_cell(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path, "alice", "bob", "carol") as it,
        opened(it, Wanted(pipeline_parallel=2)) as cluster,
    ):
        (lost, *_), (kept, *_) = it.told.stages
        (cell,) = it.hosts[kept].machine.cells
        it.hub.kill(it.hosts[lost].network.peer)
        await until(lambda: it.phases("resumed") == ["resumed"])
        assert it.hosts[kept].machine.cells == [cell]
        # It goes by the new plan; who is new has an address that nobody had before.
        assert it.hosts[kept].machine.plans[-1].members == cluster.cluster.plan.members
        addresses = [member.address.rpartition(".")[2] for member in cluster.cluster.plan.members]
        assert addresses[0] == "1"
        assert "4" in addresses
        assert [load.stall_s for load in it.script.loads] == [5.0, 5.0]


@asynccontextmanager
async def opened(it: Swarm, wanted: Wanted) -> AsyncIterator[OpenedCluster]:
    async with opened_cluster(it.requester, "tiny", None, wanted, it.told.progress) as cluster:
        it.told.ready(cluster)
        yield cluster


async def test_members_that_do_not_reach_each_other_are_parted(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path, "alice", "bob", "carol", "dave", "erin") as it,
        opened(it, Wanted(pipeline_parallel=3)) as cluster,
    ):
        *apart, lost = (stage.peer for stage in cluster.cluster.stages.stages)
        it.script.apart = frozenset(apart)
        it.hub.kill(lost)
        await until(lambda: it.phases("resumed") == ["resumed"], 20)
        seated = {stage.peer for stage in cluster.cluster.stages.stages}
        assert len(seated) == 3
        assert not it.script.apart <= seated


async def test_a_spare_takes_the_place_of_a_host_that_is_lost(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path, "alice", "bob", "carol", "dave") as it,
        opened(it, Wanted(pipeline_parallel=2, spares=1)) as cluster,
    ):
        await until(lambda: it.phases("spare") == ["spare"])
        (spare,) = cluster.cluster.plan.spares
        # Not before its member has said that it can run a stage at once.
        await until(lambda: cluster.cluster.standing_by() == (spare.peer,))
        seated = {stage.name for stage in cluster.cluster.stages.stages}
        lost = cluster.cluster.stages.stages[1]
        asked = len(it.phases("discover"))
        it.hub.kill(lost.peer)
        await until(lambda: it.phases("resumed") == ["resumed"])
        # Nobody had to be looked for.
        assert len(it.phases("discover")) == asked
        assert cluster.cluster.stages.stages[1].peer == spare.peer
        assert cluster.cluster.stages.stages[1].first_layer == lost.first_layer
        assert {stage.name for stage in cluster.cluster.stages.stages} != seated
        # And another one stands by soon.
        await until(lambda: it.phases("spare") == ["spare"] * 2)
        (after,) = cluster.cluster.plan.spares
        assert after.peer not in {spare.peer, lost.peer}


@pytest.mark.parametrize(("silence_s", "with_spare_s"), [(4, 1.5), (2, 1.5), (60, 22.5), (1, 1)])
def test_silence_is_judged_sooner_where_a_spare_stands_by(silence_s: float, with_spare_s: float) -> None:
    assert silence_with_spare(silence_s) == with_spare_s


async def test_a_spare_that_is_lost_interrupts_nothing_and_is_replaced(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path, "alice", "bob", "carol") as it,
        opened(it, Wanted(pipeline_parallel=1, spares=1)) as cluster,
    ):
        await until(lambda: it.phases("spare") == ["spare"])
        it.hub.kill(cluster.cluster.plan.spares[0].peer)
        await until(lambda: it.phases("spare") == ["spare"] * 2)
        assert not it.phases("lost", "resumed")
        assert it.script.suspends == 0


async def test_a_host_that_drains_is_left_before_it_goes(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path, "alice", "bob") as it,
        opened(it, Wanted(pipeline_parallel=1)) as cluster,
        trio.open_nursery() as nursery,
    ):
        first = cluster.cluster.stages.stages[0].name
        begun = trio.current_time()
        nursery.start_soon(it.hosts[first].server.drain, 30.0)
        await until(lambda: it.phases("resumed") == ["resumed"])
        assert trio.current_time() - begun < 8
        (stage,) = cluster.cluster.stages.stages
        assert stage.name != first
        await until(lambda: it.hosts[first].free)


async def test_a_host_that_paused_and_lends_again_is_one_to_go_on_with(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path, "alice", "bob") as it,
        opened(it, Wanted(pipeline_parallel=2, patience_s=5.0)) as cluster,
    ):
        (paused, *_), (other, *_) = it.told.stages
        it.hosts[paused].server.pause(60.0, "its owner needs it")
        await until(lambda: it.phases("draining") == ["draining"])
        it.hosts[paused].server.resume()
        await until(lambda: it.phases("draining") == ["draining"] * 2)
        (cell,) = it.hosts[paused].machine.cells
        it.hosts[other].machine.cells[0].die(137)
        await until(lambda: it.phases("resumed") == ["resumed"])
        assert it.hosts[paused].machine.cells == [cell]
        assert not cluster.cluster.recovering


async def test_a_slow_member_is_replaced_where_there_is_another(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob") as it, opened(it, Wanted(pipeline_parallel=1)) as cluster:
        (slow,) = cluster.cluster.plan.workers
        alarm = {"event": "slow", "address": slow.address, "detail": "30 times slower than it was"}
        it.head.cells[0].say.send_nowait(alarm)
        await until(lambda: it.phases("resumed") == ["resumed"])
        assert cluster.cluster.plan.workers[0].peer != slow.peer


async def test_a_member_whose_rank_died_is_replaced(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob") as it, opened(it, Wanted(pipeline_parallel=1)) as cluster:
        (dead,) = cluster.cluster.plan.workers
        alarm = {"event": "lost", "address": dead.address, "detail": "its rank died"}
        it.head.cells[0].say.send_nowait(alarm)
        await until(lambda: it.phases("resumed") == ["resumed"])
        assert cluster.cluster.plan.workers[0].peer != dead.peer


async def test_where_nobody_knows_which_member_is_lost_one_of_them_has_to_go(tmp_path: Path) -> None:
    """As when nothing comes through between two hosts that are there for everybody else."""
    async with (
        swarm(tmp_path, "alice", "bob", "carol") as it,
        opened(it, Wanted(pipeline_parallel=2)) as cluster,
    ):
        pairs = []
        for resumed in range(1, 3):
            pairs.append(frozenset(worker.peer for worker in cluster.cluster.plan.workers))
            alarm = {"event": "lost", "address": "", "detail": "a step does not end"}
            it.head.cells[0].say.send_nowait(alarm)
            await until(lambda resumed=resumed: it.phases("resumed") == ["resumed"] * resumed)  # type: ignore[misc]
        assert pairs[0] != pairs[1]
        assert len(cluster.cluster.plan.workers) == 2


async def test_a_rank_that_dies_while_the_load_ends_is_not_overlooked(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob", "carol") as it:

        def fail() -> None:
            it.script.breaks = 1
            it.hub.kill(it.hosts[it.told.stages[0][0]].network.peer)

        with trio.fail_after(15):
            await it.interrupted(Wanted(), fail)
        assert [piece.token_ids for piece in it.told.pieces] == ALL
        assert len(it.script.loads) == 3


async def test_a_cell_that_dies_is_made_anew_on_the_only_host(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice") as it:
        await it.interrupted(Wanted(), lambda: it.hosts["alice"].machine.cells[0].die(137))
        assert [piece.token_ids for piece in it.told.pieces] == ALL
        assert it.phases("resumed") == ["resumed"]


async def test_a_second_loss_during_the_recovery_from_the_first(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob", "carol", script=Script(token_s=0.01, load_s=0.4)) as it:

        def fail() -> None:
            first = it.told.stages[0][0]
            it.hub.kill(it.hosts[first].network.peer)

        async with trio.open_nursery() as nursery:

            async def fail_again() -> None:
                await until(lambda: len(it.script.loads) == 2)
                assert it.told.opened is not None
                plan = it.head.plans[-1]
                it.hub.kill(plan.workers[0].peer)

            nursery.start_soon(fail_again)
            await it.interrupted(Wanted(pipeline_parallel=1), fail)
        assert [piece.token_ids for piece in it.told.pieces] == ALL
        assert len(it.script.loads) == 3


@pytest.mark.parametrize("patience_s", [0.0, 2.0])
async def test_where_nobody_is_left_the_first_loss_is_told(patience_s: float, tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice") as it:
        begun = trio.current_time()
        with pytest.raises(HostLost, match="host alice") as caught:
            await it.interrupted(
                Wanted(patience_s=patience_s), lambda: it.hub.kill(it.hosts["alice"].network.peer)
            )
        assert ("nobody could take its place within 2 s" in str(caught.value)) == bool(patience_s)
        assert trio.current_time() - begun < patience_s + 8


async def test_one_who_comes_later_is_waited_for(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice") as it:

        async def come() -> None:
            await until(lambda: it.phases("waiting") != [])
            it.hosts["bob"] = await join_host(it.hub, "bob")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            await it.interrupted(Wanted(), lambda: it.hub.kill(it.hosts["alice"].network.peer))
        assert [piece.token_ids for piece in it.told.pieces] == ALL
        assert [name for name, _, _ in it.told.stages] == ["bob"]


async def test_a_host_on_which_no_cell_can_be_made_is_planned_around(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob") as it:
        it.hosts["alice"].machine.refuse = "no namespaces here"
        await ask(it.requester, "tiny", LONG, Wanted(), it.told)
        assert [name for name, _, _ in it.told.stages] == ["bob"]


async def test_a_session_that_is_closed_while_it_recovers_leaves_nothing(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice") as it, opened(it, Wanted(patience_s=60.0)):
        it.hub.kill(it.hosts["alice"].network.peer)
        await until(lambda: it.phases("waiting") != [])


async def test_a_host_whose_cells_die_again_and_again_is_given_up(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice") as it:
        with pytest.raises(HostLost, match="no namespaces here"), unwrapped():
            async with opened(it, Wanted(patience_s=2.0)):
                it.hosts["alice"].machine.refuse = "no namespaces here"
                it.hosts["alice"].machine.cells[0].die(1)
                await trio.sleep(20)
        assert len(it.phases("lost")) < 10


async def test_a_host_that_was_lost_and_came_back_stands_by_where_nobody_else_can(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path, "alice", "bob") as it,
        opened(it, Wanted(pipeline_parallel=1, spares=1)) as cluster,
    ):
        await until(lambda: it.phases("spare") == ["spare"])
        first = cluster.cluster.stages.stages[0].name
        it.hosts[first].machine.cells[0].die(137)
        await until(lambda: it.phases("resumed") == ["resumed"])
        await until(lambda: len(cluster.cluster.plan.spares) == 1, 12)
        assert cluster.cluster.plan.spares[0].peer == it.hosts[first].network.peer


async def test_where_hosts_were_named_nobody_else_stands_by(tmp_path: Path) -> None:
    wanted = Wanted(pipeline_parallel=1, spares=1, peers=("alice", "carol"))
    async with swarm(tmp_path, "alice", "bob", "carol") as it, opened(it, wanted) as cluster:
        await until(lambda: it.phases("spare") == ["spare"])
        first = cluster.cluster.stages.stages[0].name
        (other,) = {"alice", "carol"} - {first}
        assert cluster.cluster.plan.spares[0].peer == it.hosts[other].network.peer


async def test_nobody_takes_the_place_of_a_named_host_by_its_name(tmp_path: Path) -> None:
    wanted = Wanted(pipeline_parallel=1, peers=("alice",), patience_s=2.0)
    async with swarm(tmp_path, "alice") as it:
        with pytest.raises(HostLost, match="nobody could take its place"), unwrapped():
            async with opened(it, wanted):
                impostor = await join_host(it.hub, "alice")
                it.hub.kill(it.hosts["alice"].network.peer)
                await trio.sleep(20)
        assert not impostor.machine.plans
        assert impostor.free
