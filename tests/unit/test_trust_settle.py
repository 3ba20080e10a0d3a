"""Receipts over lease streams, in virtual time: who signs, and what it costs where somebody does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from edgellm.errors import HostLost, NetworkError, unwrapped
from edgellm.leasing.hold import Leases
from edgellm.p2p.identity import Identity
from edgellm.testing.memory_network import MemoryHub, open_hub
from edgellm.trust import settle as settle_module
from edgellm.trust.receipt import countersign, open_countersigned, open_signed, sign
from edgellm.trust.settle import SETTLE_S, Settled
from tests.unit.test_leasing_stream import Host, hold_leases, join_host, sealed, until, wish


def keep(leases: Leases, settled: list[Settled], lost: list[str] | None = None) -> None:
    """Each host has had a part in two answers of 32 tokens."""
    account = leases.account
    account.now = lambda: 1000.0
    for lease in leases.held:
        account.answers[lease.wish.host.peer], account.tokens[lease.wish.host.peer] = 2, 64
    account.settled = settled.extend
    account.lost = lambda peer, name, reason: (lost if lost is not None else []).append(peer)


async def lease_and_release(
    hub_hosts: Sequence[Host], hub: MemoryHub, *, cancel: bool = False
) -> tuple[list[Settled], float]:
    """What came of the receipts of one cluster, and how long the end took."""
    requester = hub.join()
    settled: list[Settled] = []
    began = 0.0
    count = len(hub_hosts)
    wishes = [
        wish(host, first=index * 8 // count, end=(index + 1) * 8 // count)
        for index, host in enumerate(hub_hosts)
    ]
    with trio.CancelScope() as scope:
        async with hold_leases(requester, wishes) as leases:
            keep(leases, settled)
            await leases.commit(sealed(leases, requester.identity))
            await trio.sleep(1)
            began = trio.current_time()
            if cancel:
                scope.cancel()
                await trio.sleep(60)
    return settled, trio.current_time() - began


async def test_both_sign(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        alice, bob = join_host(hub), join_host(hub)
        settled, _ = await lease_and_release([alice, bob], hub)
        assert [open_countersigned(one.envelope or b"") for one in settled] == [
            one.receipt for one in settled
        ]
        assert [(one.receipt.host, one.receipt.first_layer, one.receipt.tokens) for one in settled] == [
            (alice.network.peer, 0, 64),
            (bob.network.peer, 4, 64),
        ]
        await until(lambda: alice.free and bob.free)


async def test_also_where_the_user_gives_up(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        settled, _ = await lease_and_release([join_host(hub)], hub, cancel=True)
        assert settled[0].envelope


async def test_who_is_lost_is_not_asked_and_the_others_are(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        alice, bob = join_host(hub), join_host(hub)
        requester = hub.join()
        settled: list[Settled] = []
        lost: list[str] = []
        with pytest.raises(HostLost), unwrapped():
            async with hold_leases(requester, [wish(alice, end=4), wish(bob, first=4)]) as leases:
                keep(leases, settled, lost)
                await leases.commit(sealed(leases, requester.identity))
                hub.kill(bob.network.peer)
                await trio.sleep(60)
        assert lost == [bob.network.peer]
        assert [(one.receipt.host, one.was_asked, one.envelope is not None) for one in settled] == [
            (bob.network.peer, False, False),
            (alice.network.peer, True, True),
        ]
        assert [one.receipt.tokens for one in settled] == [64, 64]


async def test_a_host_that_said_that_it_would_leave_has_not_failed(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        alice, requester = join_host(hub), hub.join()
        settled: list[Settled] = []
        lost: list[str] = []
        with pytest.raises(HostLost, match="shutting down"), unwrapped():
            async with hold_leases(requester, [wish(alice)]) as leases:
                keep(leases, settled, lost)
                await leases.commit(sealed(leases, requester.identity))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(alice.server.drain, 5.0)
                    await trio.sleep(60)
        assert len(settled) == 1
        assert not lost


async def test_a_lease_that_is_let_go_midway_is_settled_without_a_wait(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_hub() as hub:
        alice, bob, requester = join_host(hub), join_host(hub), hub.join()
        settled: list[Settled] = []
        async with hold_leases(requester, [wish(alice, end=4), wish(bob, first=4)]) as leases:
            keep(leases, settled)
            await leases.commit(sealed(leases, requester.identity))
            await trio.sleep(7)
            before = trio.current_time()
            await leases.release(leases.held[:1], "the cluster goes on without it")
            assert trio.current_time() - before < 0.5
            assert [(one.receipt.host, one.receipt.seconds) for one in settled] == [(alice.network.peer, 7.0)]
        assert [one.was_asked for one in settled] == [False, True]


async def test_where_nobody_keeps_accounts_nobody_is_asked(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_hub() as hub:
        alice, requester = join_host(hub), hub.join()
        asked: list[bytes] = []
        monkeypatch.setattr(
            alice.server._accounts, "countersign", lambda envelope, lease: asked.append(envelope)
        )
        async with hold_leases(requester, [wish(alice)]) as leases:
            await leases.commit(sealed(leases, requester.identity))
            await trio.sleep(1)
        assert not asked


@pytest.mark.parametrize(
    "signs",
    [
        lambda host, envelope: b"",
        lambda host, envelope: envelope,
        lambda host, envelope: b"x" * 10_000,
        lambda host, envelope: countersign(envelope, Identity.generate()),
        lambda host, envelope: countersign(
            sign(replace(open_signed(envelope), tokens=10**9), Identity.generate()), host.network.identity
        ),
        lambda host, envelope: countersign(
            sign(replace(open_signed(envelope), requester=MALLORY.peer, tokens=10**9), MALLORY),
            host.network.identity,
        ),
    ],
)
async def test_a_host_that_signs_nothing_or_something_else(
    autojump_clock: MockClock, signs: Callable[[Host, bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_hub() as hub:
        alice = join_host(hub)
        monkeypatch.setattr(
            alice.server._accounts, "countersign", lambda envelope, lease: signs(alice, envelope)
        )
        settled, seconds = await lease_and_release([alice], hub)
        assert [(one.envelope, one.was_asked) for one in settled] == [(None, True)]
        assert seconds <= SETTLE_S + 1.5
        await until(lambda: alice.free)


MALLORY = Identity.generate()


async def test_a_host_that_falls_silent_costs_a_second(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_hub() as hub:
        alice, bob = join_host(hub), join_host(hub)

        async def never(*_: object) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(alice.server, "_sign", never)
        settled, seconds = await lease_and_release([alice, bob], hub)
        assert [one.envelope is None for one in settled] == [True, False]
        assert SETTLE_S <= seconds <= SETTLE_S + 1.6


async def test_a_second_receipt_of_a_lease_is_not_signed(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        alice, requester = join_host(hub), hub.join()
        settled: list[Settled] = []
        async with hold_leases(requester, [wish(alice)]) as leases:
            keep(leases, settled)
            await leases.commit(sealed(leases, requester.identity))
            await trio.sleep(1)
            lease = alice.server.book.leases[0]
            [held] = leases.held
            receipt = receipt_of(leases, requester.identity, lease.id)
            assert alice.server._accounts.countersign(sign(receipt, requester.identity), lease)
            assert held.lease == lease.id
        assert settled[0].envelope is None


def receipt_of(leases: Leases, identity: Identity, lease: str) -> settle_module.Receipt:
    [held] = leases.held
    terms = held.wish.terms
    return settle_module.Receipt(
        terms.cluster, lease, held.wish.host.peer, identity.peer, terms.digest, 0, 8, 1, 1, 0.5, 1000.0
    )


async def test_a_receipt_before_the_plan_is_out_of_place(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        alice, requester = join_host(hub), hub.join()
        with pytest.raises((HostLost, NetworkError)), unwrapped():
            async with hold_leases(requester, [wish(alice)]) as leases:
                [held] = leases.held
                message = settle_module.wire_pb2.FromRequester(
                    receipt=settle_module.wire_pb2.SealedReceipt(envelope=b"early")
                )
                await held.send(message)
                await trio.sleep(10)
        await until(lambda: alice.free)
