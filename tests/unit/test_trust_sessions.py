"""Checks in a session: while nobody asks, broken off when somebody does, and a liar's place is given to others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from edgellm.cluster.head import Progress
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import opened_cluster
from edgellm.sessions import checking
from edgellm.sessions.checking import keep_checking
from edgellm.sessions.holding import SwapDesk
from edgellm.sessions.serving import Serving, Slot
from tests.unit.test_trust_requester import QUESTION, Swarm, swarm


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "LOOK_S", 0.02)
    monkeypatch.setattr(checking, "QUIET_S", 0.1)


@contextmanager
def busy(serving: Serving) -> Iterator[None]:
    with serving.used():
        yield


async def session(swarm_: Swarm, nursery: trio.Nursery, wanted: Wanted) -> tuple[Serving, SwapDesk]:
    """A session's cluster that has answered once, and its checks."""
    serving = Serving("tiny", idle_s=0)
    desk = SwapDesk(serving)

    async def hold(task_status: trio.TaskStatus[None]) -> None:
        async with opened_cluster(swarm_.requester, "tiny", None, wanted, lambda _: None) as opened:
            serving.use(Slot("tiny", opened))
            async for _ in opened.cluster.engine.generate(QUESTION, "id"):
                pass
            task_status.started()
            await trio.sleep_forever()

    await nursery.start(hold)

    def tell(progress: Progress) -> None:
        swarm_.told.append(progress.detail)

    nursery.start_soon(keep_checking, swarm_.requester, Wanted(), serving, desk, tell)
    return serving, desk


async def until_told(swarm_: Swarm, words: str) -> None:
    with trio.fail_after(15):
        while not any(words in line for line in swarm_.told):
            await trio.sleep(0.02)


async def test_answers_are_checked_while_nobody_asks(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob") as swarm_, trio.open_nursery() as nursery:
        serving, desk = await session(swarm_, nursery, Wanted(peers=("alice",)))
        with busy(serving):
            await trio.sleep(3)  # longer than it takes to hear of the answer
            assert not swarm_.told
        await until_told(swarm_, "compute the same")
        assert desk.taken() is None
        nursery.cancel_scope.cancel()


async def test_a_check_is_broken_off_for_a_request_and_done_later(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob") as swarm_, trio.open_nursery() as nursery:
        swarm_.script.load_s = 0.3
        serving, _ = await session(swarm_, nursery, Wanted(peers=("alice",)))
        await until_told(swarm_, "checking")
        with busy(serving):
            await trio.sleep(1)
            assert not any("compute the same" in line for line in swarm_.told)
            assert swarm_.hosts["bob"].free, "what a check had borrowed is given back"
        await until_told(swarm_, "compute the same")
        nursery.cancel_scope.cancel()


async def test_a_liar_loses_its_place_in_the_session(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob", "mallory") as swarm_, trio.open_nursery() as nursery:
        swarm_.lies("mallory")
        _, desk = await session(swarm_, nursery, Wanted(peers=("mallory",)))
        await until_told(swarm_, "caught: mallory")
        with trio.fail_after(5):
            while (swap := desk.taken()) is None:
                await trio.sleep(0.02)
        assert swap.model == "tiny"
        nursery.cancel_scope.cancel()
