"""What a requester does with its experience: whole questions in a swarm in memory, with liars and failures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from edgellm.errors import HostLost, PlanError
from edgellm.requester.ask import ask
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import Requester, opened_cluster
from edgellm.requester.spot_check import check_picked
from edgellm.testing.memory_network import MemoryHub, open_hub
from edgellm.testing.scripted_engine import Script
from edgellm.trust.accounts import HostAccounts, lent
from edgellm.trust.book import TrustBook, picked
from edgellm.trust.ledger import HostRecord, Ledger
from edgellm.trust.receipt import open_countersigned
from edgellm.types.plan import KvSharing
from edgellm.types.request import Question, Sampling
from edgellm.wire import backend_pb2
from tests.unit.swarm_in_memory import Host, Recorder, join_host, join_requester

QUESTION = Question(text="why is the sky blue", sampling=Sampling(max_tokens=5))
LONG = Question(text="why is the sky blue", sampling=Sampling(max_tokens=400))


@dataclass
class Swarm:
    hub: MemoryHub
    hosts: dict[str, Host]
    requester: Requester
    script: Script
    told: list[str]

    async def ask(self, wanted: Wanted, question: Question = QUESTION) -> Recorder:
        recorder = Recorder()
        await ask(self.requester, "tiny", question, wanted, recorder)
        return recorder

    async def check(self, wanted: Wanted = Wanted()) -> tuple[str, ...]:  # noqa: B008
        caught = await check_picked(self.requester, wanted, self.told.append)
        return tuple(self.name(peer) for peer in caught)

    def lies(self, *names: str) -> None:
        self.script.liars = frozenset(self.hosts[name].network.peer for name in names)

    def name(self, peer: str) -> str:
        return next(name for name, host in self.hosts.items() if host.network.peer == peer)

    def record(self, name: str) -> HostRecord | None:
        assert self.requester.trust is not None
        return self.requester.trust.ledger.record(self.hosts[name].network.peer)


@asynccontextmanager
async def swarm(directory: Path, *names: str, share: float = 1.0, token_s: float = 0) -> AsyncIterator[Swarm]:
    async with open_hub() as hub:
        hosts = {name: await join_host(hub, name) for name in names}
        for name, host in hosts.items():
            host.server._accounts = HostAccounts(host.network.identity, directory / name)
            (directory / name).mkdir()
        script = Script(token_s=token_s)
        requester = join_requester(hub, directory / "store", script)
        requester = replace(requester, trust=TrustBook(Ledger(directory / "state"), share))
        yield Swarm(hub, hosts, requester, script, [])
        with trio.fail_after(5):
            while not all(host.free for host in hosts.values()):
                await trio.sleep(0.01)


async def test_an_answer_leaves_receipts_on_both_sides(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob", share=0) as swarm_:
        await swarm_.ask(Wanted(pipeline_parallel=2))
        for name in ("alice", "bob"):
            record = swarm_.record(name)
            assert record is not None
            assert (record.name, record.answers, record.tokens, record.unsigned) == (name, 1, 5, 0)
            trust = swarm_.requester.trust
            assert trust is not None
            [envelope] = trust.ledger.receipts(record.peer)
            assert open_countersigned(envelope).tokens == 5
            assert not trust.picked
    for name in ("alice", "bob"):
        [lease] = lent(tmp_path / name)
        assert (lease.answers, lease.tokens, lease.ended) == (1, 5, "released")


async def test_a_lost_host_is_noted_and_after_two_losses_the_last_choice(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob", share=0, token_s=0.02) as swarm_:
        alice = swarm_.hosts["alice"]
        for _ in range(2):
            with pytest.raises(HostLost):
                async with trio.open_nursery() as nursery:
                    recorder = Recorder()

                    async def fail(recorder: Recorder = recorder) -> None:
                        await recorder.began.wait()
                        alice.machine.cells[0].die(137)

                    nursery.start_soon(fail)
                    try:
                        await ask(
                            swarm_.requester, "tiny", LONG, Wanted(peers=("alice",), patience_s=0.0), recorder
                        )
                    except HostLost as error:
                        lost = error
                        nursery.cancel_scope.cancel()
                raise lost
        record = swarm_.record("alice")
        assert record is not None
        assert record.failures == 2
        for _ in range(3):
            told = await swarm_.ask(Wanted(pipeline_parallel=1))
            assert [name for name, _, _ in told.stages] == ["bob"]
        # Nothing can be done without it here, and who names it gets it.
        assert len((await swarm_.ask(Wanted(pipeline_parallel=2))).stages) == 2
        assert len((await swarm_.ask(Wanted(peers=("alice",)))).stages) == 1


async def test_an_answer_that_others_went_on_with_is_held_against_nobody(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob", "carol", token_s=0.01) as swarm_:
        recorder = Recorder()
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                await recorder.began.wait()
                gone = next(host for host in swarm_.hosts.values() if host.machine.cells)
                gone.machine.cells[0].die(137)

            nursery.start_soon(fail)
            await ask(swarm_.requester, "tiny", LONG, Wanted(pipeline_parallel=2), recorder)
        assert len(recorder.pieces) == 400
        records = [record for name in swarm_.hosts if (record := swarm_.record(name)) is not None]
        assert sorted(record.failures for record in records) == [0, 0, 1]
        assert sorted(record.answers for record in records) == [0, 1, 1]
        trust = swarm_.requester.trust
        assert trust is not None
        assert not trust.picked


async def test_honest_hosts_pass(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob") as swarm_:
        await swarm_.ask(Wanted(peers=("alice",)))
        assert await swarm_.check() == ()
        assert swarm_.told[-1] == "checked: alice, bob compute the same"
        for name in ("alice", "bob"):
            record = swarm_.record(name)
            assert record is not None
            assert (record.checks_passed, record.checks_failed) == (1, 0)
        answered, checked = swarm_.record("alice"), swarm_.record("bob")
        assert answered is not None
        assert checked is not None
        assert (answered.answers, checked.answers) == (1, 0), "who only checks has answered nothing"


async def test_a_liar_is_caught_left_out_and_taken_back(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob", "carol", "mallory") as swarm_:
        swarm_.lies("mallory")
        await swarm_.ask(Wanted(peers=("mallory",)))
        assert await swarm_.check() == ("mallory",)
        assert "caught: mallory computed wrongly" in swarm_.told[-1]
        told = await swarm_.ask(Wanted(pipeline_parallel=3))
        assert sorted(name for name, _, _ in told.stages) == ["alice", "bob", "carol"]
        assert "mallory is left out: its own computation" in " ".join(note.detail for note in told.notes)
        with pytest.raises(PlanError, match="left out for what it did before") as refused:
            await swarm_.ask(Wanted(peers=("mallory",)))
        assert "--forgive" in refused.value.remedy
        assert swarm_.requester.trust is not None
        swarm_.requester.trust.ledger.forgive(swarm_.hosts["mallory"].network.peer)
        swarm_.lies()
        await swarm_.ask(Wanted(peers=("mallory",)))


async def test_of_two_the_liar_is_found_and_the_other_is_not_blamed(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob", "carol", "mallory") as swarm_:
        swarm_.lies("mallory")
        await swarm_.ask(Wanted(peers=("alice", "mallory"), pipeline_parallel=2))
        assert await swarm_.check() == ("mallory",)
        alice = swarm_.record("alice")
        assert alice is not None
        assert alice.caught is None


async def test_a_checker_that_lies_is_caught_instead(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob", "mallory") as swarm_:
        swarm_.lies("mallory")
        caught: tuple[str, ...] = ()
        for _ in range(20):
            await swarm_.ask(Wanted(peers=("alice",)))
            caught = await swarm_.check()
            if caught:
                break
        assert caught == ("mallory",), "by lot it is asked sooner or later"


async def test_between_two_alone_nobody_is_caught(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "mallory") as swarm_:
        swarm_.lies("mallory")
        await swarm_.ask(Wanted(peers=("mallory",)))
        assert await swarm_.check() == ()
        assert "contradict each other" in swarm_.told[-1]


async def test_a_checker_that_dies_costs_a_check_and_its_own_reputation(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob") as swarm_:
        await swarm_.ask(Wanted(peers=("alice",)))
        swarm_.script.load_s = 0.5
        bob = swarm_.hosts["bob"]
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                while not bob.machine.cells:
                    await trio.sleep(0.01)
                bob.machine.cells[0].die(137)

            nursery.start_soon(fail)
            assert await swarm_.check() == ()
            nursery.cancel_scope.cancel()
        assert "cannot be checked" in swarm_.told[-1]
        record = swarm_.record("bob")
        assert record is not None
        assert (record.failures, record.checks_failed) == (1, 0)


async def test_what_others_kv_blocks_brought_is_held_against_nobody(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob") as swarm_:
        kept = backend_pb2.PickedAnswer(
            prompt_ids=[1], token_ids=range(8), is_likeliest=True, cached_prompt_tokens=512
        )
        async with opened_cluster(swarm_.requester, "tiny", None, Wanted(), lambda _: None) as opened:
            cluster = opened.cluster
        sharing = KvSharing("session", b"i" * 16, b"s" * 32, "tracker")
        shares = replace(cluster, plan=replace(cluster.plan, kv=sharing))
        assert picked(kept, cluster, {}) is not None, "its own prefix cache is its own work"
        assert picked(kept, shares, {}) is None
        kept.cached_prompt_tokens = 0
        assert picked(kept, shares, {}) is not None
        del kept.token_ids[3:]
        assert picked(kept, cluster, {}) is None, "three tokens say too little"


async def test_without_other_hosts_nothing_is_checked_and_nothing_noted(tmp_path: Path) -> None:
    async with swarm(tmp_path, "alice", "bob") as swarm_:
        await swarm_.ask(Wanted(pipeline_parallel=2))
        assert await swarm_.check() == ()
        assert "no other hosts" in swarm_.told[-1]
        # Nor by hosts that the user did not name.
        await swarm_.ask(Wanted(peers=("alice",)))
        assert await swarm_.check(Wanted(peers=("alice",))) == ()
        assert "no other hosts" in swarm_.told[-1]
        record = swarm_.record("bob")
        assert record is not None
        assert record.checks_passed == 0
