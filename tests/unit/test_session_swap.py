"""One cluster of a session in another's place: over a network in memory and a scripted engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from edgellm.errors import (
    DiscoveryError,
    EngineError,
    HostLost,
    PlanError,
    SessionError,
    UsageError,
    unwrapped,
)
from edgellm.gateway.state import Closing, Ready, Starting, Swapping
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import opened_cluster
from edgellm.sessions import holding
from edgellm.sessions.holding import Holding, Swap, SwapDesk
from edgellm.sessions.serving import Serving
from edgellm.testing.memory_network import MemoryHub, open_hub
from edgellm.testing.scripted_engine import Script
from tests.unit.swarm_in_memory import Host, join_host, join_requester


@dataclass
class Session:
    hub: MemoryHub
    hosts: Sequence[Host]
    serving: Serving
    clusters: Holding
    script: Script

    async def swap(self, model: str) -> Swap:
        swap = Swap(model)
        await self.clusters.swap(swap)
        return swap

    def members(self) -> set[str]:
        slot = self.serving.slot
        assert slot is not None
        return {stage.name for stage in slot.opened.cluster.stages.stages}


@asynccontextmanager
async def session(tmp_path: Path, *names: str) -> AsyncIterator[Session]:
    async with open_hub() as hub:
        hosts = [await join_host(hub, name, names=("tiny", "other")) for name in names]
        serving, script = Serving("tiny", 0), Script()
        wanted = Wanted(pipeline_parallel=1, context=256, serves_api=True, patience_s=0.0)
        requester = join_requester(hub, tmp_path, script)
        async with holding.holding(requester, wanted, serving, lambda line: None) as clusters:
            await clusters.begin("tiny")
            yield Session(hub, hosts, serving, clusters, script)


async def test_the_new_cluster_comes_up_beside_the_old_one(tmp_path: Path) -> None:
    async with session(tmp_path, "alice", "bob") as it:
        before = it.members()
        with it.serving.used() as slot:
            swap = await it.swap("other")
            assert (swap.failure, swap.ended.is_set()) == (None, True)
            assert it.serving.model == "other"
            assert it.members().isdisjoint(before)
            # It goes when it has answered.
            await trio.sleep(0.2)
            assert not any(host.free for host in it.hosts)
            assert slot is not None
            assert slot.model == "tiny"
        with trio.fail_after(5):
            while sum(host.free for host in it.hosts) != 1:
                await trio.sleep(0.02)
        assert isinstance(it.serving.state(), Ready)


async def test_where_there_is_no_room_requests_wait_and_the_old_one_goes_first(tmp_path: Path) -> None:
    async with session(tmp_path, "alice") as it, trio.open_nursery() as nursery:
        with it.serving.used():
            nursery.start_soon(it.swap, "other")
            with trio.fail_after(5):
                while not isinstance(it.serving.state(), Swapping):
                    await trio.sleep(0.02)
            assert it.serving.swapping_to == "other"
            with it.serving.used() as slot:
                assert slot is None
            await trio.sleep(0.2)
            assert isinstance(it.serving.state(), Swapping)
        with trio.fail_after(5):
            while it.serving.slot is None:
                await trio.sleep(0.02)
        assert it.serving.model == "other"


async def test_a_model_that_nobody_has_changes_nothing(tmp_path: Path) -> None:
    async with session(tmp_path, "alice") as it:
        before = it.serving.slot
        swap = await it.swap("nobody-has-this")
        assert isinstance(swap.failure, DiscoveryError)
        assert it.serving.slot is before
        assert it.serving.swapping_to == ""


async def test_the_old_model_comes_back_where_the_new_one_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fussy(requester: Any, model: str, *arguments: Any) -> Any:
        if model == "other":
            raise PlanError("too big", remedy="lend more")
        return opened_cluster(requester, model, *arguments)

    monkeypatch.setattr(holding, "opened_cluster", fussy)
    monkeypatch.setattr(holding, "FREED_S", 0.3)
    monkeypatch.setattr(holding, "_RETRY_S", 0.05)
    async with session(tmp_path, "alice") as it:
        before = it.serving.slot
        swap = await it.swap("other")
        assert str(swap.failure) == "too big"
        assert it.serving.slot not in (None, before)
        assert it.serving.model == "tiny"
        assert any("comes back" in line.detail for line in swap.lines)


async def test_what_would_not_fit_on_freed_hosts_either_takes_no_cluster_down(tmp_path: Path) -> None:
    async with session(tmp_path, "alice") as it:
        before = it.serving.slot
        it.clusters._wanted = replace(it.clusters._wanted, min_tok_s=1e9)
        swap = await it.swap("other")
        assert isinstance(swap.failure, PlanError)
        assert it.serving.slot is before


async def test_a_session_that_ends_during_a_swap_has_not_swapped(tmp_path: Path) -> None:
    swap = Swap("other")
    async with session(tmp_path, "alice") as it, trio.open_nursery() as nursery:
        with it.serving.used():
            nursery.start_soon(it.clusters.swap, swap)
            while not isinstance(it.serving.state(), Swapping):
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
    assert swap.ended.is_set()
    assert isinstance(swap.failure, SessionError)


async def test_a_cluster_without_an_api_takes_no_endpoints_place(tmp_path: Path) -> None:
    async with session(tmp_path, "alice", "bob") as it:
        before = it.serving.slot
        it.clusters._wanted = replace(it.clusters._wanted, serves_api=False)
        swap = await it.swap("other")
        assert isinstance(swap.failure, EngineError)
        assert it.serving.slot is before


async def test_requests_may_go_on_to_say_names_of_before(tmp_path: Path) -> None:
    async with session(tmp_path, "alice", "bob") as it:
        await it.swap("other")
        with trio.fail_after(5):
            while not any(host.free for host in it.hosts):
                await trio.sleep(0.02)
        await it.swap("tiny")
        names = [list(load.served_model_names) for load in it.script.loads]
        assert names == [["tiny"], ["other", "tiny"], ["tiny", "other"]]


async def test_the_loss_of_the_cluster_in_use_ends_the_session(tmp_path: Path) -> None:
    with pytest.raises(HostLost), unwrapped():
        async with session(tmp_path, "alice") as it:
            it.hub.kill(it.hosts[0].network.peer)
            await trio.sleep(30)


async def test_the_loss_of_a_cluster_that_was_replaced_does_not(tmp_path: Path) -> None:
    async with session(tmp_path, "alice", "bob") as it:
        with it.serving.used() as slot:
            await it.swap("other")
            assert slot is not None
            it.hub.kill(slot.opened.cluster.stages.stages[0].peer)
            await trio.sleep(1)
        assert isinstance(it.serving.state(), Ready)


def test_why_a_session_closes_outlives_a_swap() -> None:
    serving = Serving("tiny", 0)
    with serving.swapping("other"):
        serving.leave("its hosts have lent enough")
    state = serving.state()
    assert isinstance(state, Closing)
    assert state.reason == "its hosts have lent enough"


def test_one_swap_at_a_time_and_none_before_the_session_is_there() -> None:
    serving = Serving("tiny", 0)
    desk = SwapDesk(serving)
    assert isinstance(serving.state(), Starting)
    with pytest.raises(SessionError, match="still starting"):
        desk.ask("other")
    with pytest.raises(UsageError):
        desk.ask(" ")
    assert desk.taken() is None
