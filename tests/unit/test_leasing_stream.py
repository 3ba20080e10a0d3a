"""Leases between two peers on a network in memory, in virtual time: who learns of what, and how soon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio
from trio.testing import MockClock

from edgellm.cluster.assemble import Grant, HeadDoor, assemble, head_alone
from edgellm.errors import HostLost, NetworkError, unwrapped
from edgellm.leasing import COMMIT_S, PROTOCOL
from edgellm.leasing.codec import seal_plan
from edgellm.leasing.hold import Leases, LeasesRefused, Wish, open_leases
from edgellm.leasing.lease import Lease
from edgellm.leasing.serve import CellNews, Doorway, LeaseServer
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import PeerAddress
from edgellm.testing.memory_network import MemoryHub, MemoryNetwork, open_hub
from edgellm.types.plan import ClusterPlan, Endpoint, PlanRequest, Prediction, Stage, StagePlan
from edgellm.wire import wire_pb2
from tests.unit.samples import DIGEST, ENGINE, GIB, SHAPE, book, terms

NOTICED_S = 5.0
"""The promise: a death is noticed within this."""


class FakeCell:
    def __init__(self) -> None:
        self.gone = trio.Event()
        self.why = ""
        self.amended: list[ClusterPlan] = []

    async def settle(self) -> None:
        return

    async def amend(self, plan: ClusterPlan) -> None:
        self.amended.append(plan)

    async def news(self) -> AsyncIterator[CellNews]:
        yield CellNews("joined")
        await self.gone.wait()

    async def wait(self) -> str:
        await self.gone.wait()
        return self.why

    def die(self, why: str) -> None:
        self.why = why
        self.gone.set()


@dataclass
class FakeRunner:
    cells: list[FakeCell] = field(default_factory=list)
    open_doors: int = 0

    @contextmanager
    def prepare(self, lease: Lease) -> Iterator[Doorway]:
        self.open_doors += 1
        try:
            yield Doorway(b"certificate-" + lease.id.encode(), (Endpoint("10.0.0.1", 7000),))
        finally:
            self.open_doors -= 1

    @asynccontextmanager
    async def run(self, lease: Lease, plan: ClusterPlan, doorway: Doorway) -> AsyncIterator[FakeCell]:
        cell = FakeCell()
        self.cells.append(cell)
        try:
            yield cell
        finally:
            self.cells.remove(cell)


@dataclass
class Host:
    network: MemoryNetwork
    runner: FakeRunner
    server: LeaseServer

    @property
    def free(self) -> bool:
        return not self.server.book.leases and not self.runner.cells and not self.runner.open_doors


def join_host(hub: MemoryHub, *, max_leases: int = 1) -> Host:
    network = hub.join()
    runner = FakeRunner()
    server = LeaseServer(network, book(max_leases=max_leases), runner, now=lambda: 1000.0)
    server.attach()
    return Host(network, runner, server)


def wish(host: Host, *, cluster: str = "c" * 32, first: int = 0, end: int = 8) -> Wish:
    wanted = terms(cluster=cluster, first_layer=first, end_layer=end)
    return Wish(PeerAddress(host.network.peer), "alice", wanted)


def sealed(leases: Leases, signer: Identity, **changes: object) -> bytes:
    request = PlanRequest(model="tiny", digest=DIGEST, shape=SHAPE, context=256)
    wishes = [held.wish for held in leases.held]
    stages = StagePlan(
        request=request,
        engine=ENGINE,
        tensor_parallel=1,
        stages=tuple(
            Stage(entry.host.peer, entry.name, entry.terms.first_layer, entry.terms.end_layer, GIB)
            for entry in wishes
        ),
        kv_cache_bytes=1 << 20,
        prediction=Prediction(1.0, 1.0),
    )
    grants = [
        Grant(
            held.wish.host.peer,
            held.lease,
            held.devices,
            GIB,
            held.certificate,
            held.endpoints,
            (),
            number,
        )
        for number, held in enumerate(leases.held, 2)
    ]
    head = HeadDoor(signer.peer, b"head", (Endpoint("10.0.0.9", 7001),), ())
    alone = head_alone(request, head, cluster=wishes[0].terms.cluster, token="ab" * 32, issued_at=1000.0)
    return seal_plan(replace(assemble(alone, stages, grants, issued_at=1000.0), **changes), signer)


@asynccontextmanager
async def hold_leases(network: MemoryNetwork, wishes: list[Wish]) -> AsyncIterator[Leases]:
    """Leases whose loss comes out of the body."""
    with unwrapped():
        async with open_leases(network) as leases, trio.open_nursery() as nursery:
            held = await leases.reserve(wishes)

            async def raise_loss() -> None:
                (lost, *_) = await leases.loss(held)
                assert lost.lost is not None
                raise lost.lost

            nursery.start_soon(raise_loss)
            yield leases
            nursery.cancel_scope.cancel()


async def until(condition: object, limit_s: float = NOTICED_S) -> None:
    assert callable(condition)
    with trio.fail_after(limit_s):
        while not condition():
            await trio.sleep(0.05)


async def test_a_lease_runs_and_is_free_again_when_the_requester_is_done(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        async with hold_leases(requester, [wish(host)]) as leases:
            await leases.commit(sealed(leases, requester.identity))
            news = await leases.news.receive()
            assert (news.name, news.phase) == ("alice", "joined")
            await trio.sleep(60)
            assert len(host.runner.cells) == 1
        await until(lambda: host.free, 2.0)


async def test_reserve_is_all_or_none(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        first, second, requester = join_host(hub), join_host(hub), hub.join()
        async with hold_leases(requester, [wish(second, cluster="d" * 32)]):
            with pytest.raises(LeasesRefused) as refused:
                async with hold_leases(requester, [wish(first, end=4), wish(second, first=4)]):
                    pytest.fail("one host is busy")
            assert [denial.code for denial in refused.value.denials] == ["busy"]
            await until(lambda: first.free, 2.0)


async def test_a_host_that_is_gone_refuses_nothing_but_is_named(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        wanted = wish(host)
        hub.kill(host.network.peer)
        with pytest.raises(LeasesRefused, match="alice") as refused:
            async with hold_leases(requester, [wanted]):
                pytest.fail("the host is dead")
        assert refused.value.denials[0].code == "lost"


@pytest.mark.parametrize("fault", ["kill", "freeze", "cut"])
@pytest.mark.parametrize("committed", [False, True])
async def test_the_requesters_death_frees_the_host(
    fault: str, committed: bool, autojump_clock: MockClock
) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()

        async def hold() -> None:
            async with hold_leases(requester, [wish(host)]) as leases:
                if committed:
                    await leases.commit(sealed(leases, requester.identity))
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:

            async def doomed() -> None:
                with pytest.raises(HostLost):
                    await hold()

            nursery.start_soon(doomed)
            await trio.sleep(3)
            assert len(host.server.book.leases) == 1
            getattr(hub, fault)(requester.peer)
            await until(lambda: host.free)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fault", ["kill", "freeze", "cut"])
async def test_the_hosts_death_is_seen_by_the_requester(fault: str, autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        with pytest.raises(HostLost, match="alice"), unwrapped():
            async with hold_leases(requester, [wish(host)]) as leases:
                await leases.commit(sealed(leases, requester.identity))
                await trio.sleep(3)
                getattr(hub, fault)(host.network.peer)
                with trio.fail_after(NOTICED_S):
                    await trio.sleep_forever()


async def test_a_cell_that_dies_ends_the_lease_with_its_reason(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        with pytest.raises(HostLost, match="ended its lease: out of memory"), unwrapped():
            async with hold_leases(requester, [wish(host)]) as leases:
                await leases.commit(sealed(leases, requester.identity))
                await leases.news.receive()
                host.runner.cells[0].die("out of memory")
                with trio.fail_after(1):
                    await trio.sleep_forever()
        assert host.free


async def test_devices_are_not_kept_for_a_plan_that_never_comes(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        with pytest.raises(HostLost, match="no plan came"), unwrapped():
            async with hold_leases(requester, [wish(host)]):
                with trio.fail_after(COMMIT_S + 1):
                    await trio.sleep_forever()
        assert host.free


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cluster": "e" * 32}, "another cluster"),
        ({"digest": "cd" * 32}, "another cluster, model"),
        ({"tensor_parallel": 2}, "other devices"),
        ({"kv_cache_bytes": 2 * GIB}, "more memory"),
        ({"max_model_len": 0}, "impossible number of ranks or tokens"),
        ({"subnet": "192.168.0.0/24"}, "outside the overlay"),
        ({"members": ()}, "members"),
    ],
)
async def test_a_plan_that_is_not_what_was_granted_ends_the_lease(
    changes: dict[str, object], why: str, autojump_clock: MockClock
) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        with pytest.raises(HostLost, match=why), unwrapped():
            async with hold_leases(requester, [wish(host)]) as leases:
                await leases.commit(sealed(leases, requester.identity, **changes))
                with trio.fail_after(2):
                    await trio.sleep_forever()
        assert host.free
        assert not host.runner.cells


async def test_a_plan_signed_by_another_peer_is_refused(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        with pytest.raises(HostLost, match="signed by another peer"), unwrapped():
            async with hold_leases(requester, [wish(host)]) as leases:
                await leases.commit(sealed(leases, Identity.generate()))
                with trio.fail_after(2):
                    await trio.sleep_forever()
        assert host.free


async def test_draining_tells_waits_and_then_ends(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        phases: list[str] = []

        async def hold() -> None:
            with pytest.raises(HostLost, match="shutting down"), unwrapped():
                async with hold_leases(requester, [wish(host)]) as leases:
                    await leases.commit(sealed(leases, requester.identity))
                    async for news in leases.news:
                        phases.append(news.phase)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await trio.sleep(2)
            begun = trio.current_time()
            await host.server.drain(10.0)
            assert 9.0 <= trio.current_time() - begun <= 12.0
        assert phases == ["joined", "draining"]
        assert host.free
        with pytest.raises(LeasesRefused, match="no new leases"):
            async with hold_leases(requester, [wish(host)]):
                pytest.fail("it drains")


@pytest.mark.parametrize(
    "garbage", [b"", b"\x00", b"\xff" * 64, b"\x00\x00\x00\x04abcd", b"\xff\xff\xff\xff"]
)
async def test_garbage_on_the_protocol_harms_nobody(garbage: bytes, autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, stranger, requester = join_host(hub), hub.join(), hub.join()
        stream = await stranger.open_stream(host.network.peer, PROTOCOL)
        if garbage:
            await stream.send_all(garbage)
        await stream.aclose()
        async with hold_leases(requester, [wish(host)]) as leases:
            assert leases.held[0].devices == ("0",)


async def test_a_second_plan_that_is_not_later_is_refused(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        with pytest.raises(HostLost, match="is older than the one that it would replace"), unwrapped():
            async with hold_leases(requester, [wish(host)]) as leases:
                plan = sealed(leases, requester.identity)
                await leases.commit(plan)
                await leases.commit(plan)
                with trio.fail_after(2):
                    await trio.sleep_forever()
        assert host.free


async def test_a_later_plan_is_put_in_force_in_the_same_cell(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        async with hold_leases(requester, [wish(host)]) as leases:
            await leases.commit(sealed(leases, requester.identity))
            await leases.news.receive()
            (cell,) = host.runner.cells
            await leases.commit(sealed(leases, requester.identity, issued_at=1001.0, standby=True))
            await until(lambda: [plan.standby for plan in cell.amended] == [True])
            assert host.runner.cells == [cell]
        await until(lambda: host.free, 2.0)


async def test_a_host_that_is_lost_leaves_the_others_leases_alone(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        first, second, requester = join_host(hub), join_host(hub), hub.join()
        async with open_leases(requester) as leases:
            await leases.reserve([wish(first, end=4), wish(second, first=4)])
            await leases.commit(sealed(leases, requester.identity))
            one, two = leases.held
            hub.kill(first.network.peer)
            with trio.fail_after(NOTICED_S):
                assert await leases.loss((one, two)) == (one,)
            assert one.lost is not None
            assert leases.held == (two,)
            await trio.sleep(30)
            assert leases.held == (two,)
            assert len(second.runner.cells) == 1
        await until(lambda: second.free, 2.0)


async def test_terms_out_of_form_end_the_stream(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, stranger = join_host(hub), hub.join()
        messages = MessageStream(await stranger.open_stream(host.network.peer, PROTOCOL))
        await messages.send(wire_pb2.FromRequester(reserve=wire_pb2.Reserve(cluster="../../etc")))
        with pytest.raises(NetworkError, match="reset"):
            await messages.receive_some()
        assert host.free


async def test_a_pause_can_be_put_off_brought_forward_and_taken_back(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        told: list[float | None] = []

        async def hold() -> None:
            with pytest.raises(HostLost, match="its owner needs it"), unwrapped():
                async with hold_leases(requester, [wish(host)]) as leases:
                    await leases.commit(sealed(leases, requester.identity))
                    async for news in leases.news:
                        if news.phase == "draining":
                            told.append(leases.held[0].ends_at)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await trio.sleep(2)
            host.server.pause(10.0, "its owner needs it")
            await trio.sleep(5)
            assert host.server.ends_in_s == pytest.approx(5.0)
            host.server.resume()
            assert host.server.ends_in_s is None
            # Past the deadline that it was told.
            await trio.sleep(10)
            assert len(host.runner.cells) == 1
            host.server.pause(100.0, "its owner needs it")
            await trio.sleep(1)
            host.server.pause(2.0, "its owner needs it")
            begun = trio.current_time()
            await host.server.idle()
            assert trio.current_time() - begun == pytest.approx(2.0, abs=0.1)
        # The host's clock stands still in this test.
        assert told == [1010.0, None, 1100.0, 1002.0]
        assert host.free
        host.server.resume()
        async with hold_leases(requester, [wish(host)]) as leases:
            assert leases.held[0].devices == ("0",)


async def test_a_pause_that_begins_now_waits_for_nobody(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        with pytest.raises(HostLost, match="now"), unwrapped():
            async with hold_leases(requester, [wish(host)]) as leases:
                await leases.commit(sealed(leases, requester.identity))
                await leases.news.receive()
                host.server.pause(0.0, "the owner needs it now")
                with trio.fail_after(1):
                    await trio.sleep_forever()
        assert host.free


async def test_a_lease_says_beforehand_when_it_ends(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        async with hold_leases(requester, [wish(host)]) as leases:
            assert leases.held[0].lends_until is None
        host.server.lend_until(5000.0)
        async with hold_leases(requester, [wish(host)]) as leases:
            assert leases.held[0].lends_until == 5000.0


async def test_who_keeps_devices_and_sends_no_plan_is_refused_after_a_while(
    autojump_clock: MockClock,
) -> None:
    async with open_hub() as hub:
        host = join_host(hub)
        # Identities are free: an address is what counts.
        host.server._origin_of = lambda peer: "192.0.2.7"
        held_s, tries, codes = 0.0, 0, set()
        while trio.current_time() < 1800:
            requester = hub.join()
            began = trio.current_time()
            tries += 1
            try:
                with unwrapped():
                    async with hold_leases(requester, [wish(host)]):
                        await trio.sleep(COMMIT_S + 5)
            except HostLost:
                held_s += trio.current_time() - began
            except LeasesRefused as refused:
                codes.add(refused.denials[0].code)
                await trio.sleep(5)
        assert tries > 50
        assert codes == {"policy"}
        assert held_s < 1800 * 0.2

        # Somebody else is served at once.
        host.server._origin_of = lambda peer: peer
        other = hub.join()
        async with hold_leases(other, [wish(host)]) as leases:
            await leases.commit(sealed(leases, other.identity))
