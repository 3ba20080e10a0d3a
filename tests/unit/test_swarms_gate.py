"""Who gets into a private swarm, and who is thrown out: real keys and files, over a network in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from edgellm.errors import EdgeError, MembershipError, NetworkError
from edgellm.p2p.doorkeeper import Greeting
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import Network, Stream
from edgellm.swarms.attend import PROTOCOL
from edgellm.swarms.certificate import CERTIFICATE_S
from edgellm.swarms.desk import Desk
from edgellm.swarms.exchange import HELLO_S, Applicant, Guard
from edgellm.swarms.gate import Gate
from edgellm.swarms.invite import token_of
from edgellm.swarms.rate import EACH_PER_MINUTE
from edgellm.swarms.revocation import Revocations, seal_revocations
from edgellm.swarms.seal import MAX_SEALED_BYTES
from edgellm.testing.memory_greeting import greetings
from edgellm.testing.memory_network import MemoryHub, MemoryNetwork, open_hub
from edgellm.types.member import HOST, REQUESTER
from edgellm.wire import swarm_pb2
from tests.unit.swarms_in_memory import PrivateSwarm, certify

ECHO = "/edgellm/echo/1"


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


@pytest.fixture
def swarm(tmp_path: Path) -> PrivateSwarm:
    return PrivateSwarm(tmp_path)


@pytest.fixture(autouse=True)
def patient_clock(autojump_clock: MockClock) -> None:
    """Files are written in threads, for which the clock is to wait."""
    autojump_clock.autojump_threshold = 0.02


@asynccontextmanager
async def nodes() -> AsyncIterator[tuple[MemoryHub, trio.Nursery]]:
    async with open_hub() as hub, trio.open_nursery() as nursery:
        yield hub, nursery
        nursery.cancel_scope.cancel()


async def says(network: Network, peer: str) -> str:
    """What the peer echoes."""
    stream = await network.open_stream(peer, ECHO)
    await stream.send_all(b"hello")
    with trio.fail_after(5):
        return (await stream.receive_some()).decode()


async def test_members_talk_and_know_each_other(swarm: PrivateSwarm, autojump_clock: MockClock) -> None:
    async with nodes() as (hub, nursery):
        host = swarm.node(hub, swarm.home("bob", [HOST]), nursery)
        carols = swarm.home("carol")
        asker = swarm.node(hub, carols, nursery, asks=True)
        host.serve(ECHO, echo)
        assert await says(asker, host.peer) == "hello"
        seen, shown = host.member(asker.peer), asker.member(host.peer)
        assert seen is not None
        assert shown is not None
        assert (seen.peer, seen.name, seen.roles) == (carols.member().peer, "carol", {REQUESTER})
        assert (shown.peer, shown.roles) == (host.peer, {HOST})
        assert asker.peer != carols.member().peer


# --- strangers


async def cut_after(
    guard: Guard, stranger: Callable[[Greeting], Awaitable[object]]
) -> tuple[float, list[bytes]]:
    """How long a stranger who has connected is listened to, and all that it is told."""
    far, near = greetings("stranger", "member")
    told: list[bytes] = []

    async def listen() -> None:
        with trio.move_on_after(60):
            while True:
                try:
                    told.append(await far.receive(1 << 16))
                except NetworkError:
                    return

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)

        async def talk() -> None:
            try:
                await stranger(far)
            except NetworkError:
                return

        nursery.start_soon(talk)
        with pytest.raises(EdgeError):
            await guard.inbound(near)
        took = trio.current_time() - begun
        near.close()
        nursery.cancel_scope.deadline = trio.current_time() + 1
    return took, told


def guard_of(swarm: PrivateSwarm) -> Guard:
    return Guard(swarm.gate(swarm.home("bob")))


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x13/multistream/1.0.0\n",
        b"\xff" * 100,
        swarm_pb2.Hello(sealed=b"x" * 400).SerializeToString(),
        swarm_pb2.Hello(sealed=b"x" * (MAX_SEALED_BYTES + 1)).SerializeToString(),
        swarm_pb2.Hello(join=swarm_pb2.Join(token=b"token")).SerializeToString(),
        b"x" * 60_000,
    ],
)
async def test_a_stranger_is_told_nothing_and_cut(
    swarm: PrivateSwarm, said: bytes, autojump_clock: MockClock
) -> None:
    took, told = await cut_after(guard_of(swarm), lambda greeting: greeting.send(said))
    assert took < 1.0
    assert told == []


async def test_one_who_says_nothing_is_cut_within_a_second(
    swarm: PrivateSwarm, autojump_clock: MockClock
) -> None:
    took, told = await cut_after(guard_of(swarm), lambda greeting: trio.sleep(30))
    assert took == pytest.approx(HELLO_S, abs=0.05)
    assert took < 1.0
    assert told == []


async def test_a_member_is_not_cut_because_this_process_was_held_up(swarm: PrivateSwarm) -> None:
    """By the machine's own clock: the hello is there, and nobody was to read it."""
    bob, carols = guard_of(swarm), swarm.home("carol")
    carol = Guard(swarm.gate(carols))
    far, near = greetings(carols.member().peer, bob.gate.certificate.subject)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bob.inbound, near)
        await trio.sleep(0.1)
        time.sleep(HELLO_S + 0.2)
        nursery.start_soon(carol.outbound, far)
    assert bob.member(carols.member().peer) is not None


async def test_one_without_a_certificate_gets_no_stream(
    swarm: PrivateSwarm, autojump_clock: MockClock
) -> None:
    async with nodes() as (hub, nursery):
        host = swarm.node(hub, swarm.home("bob"), nursery)
        host.serve(ECHO, echo)
        stranger = hub.join()
        for protocol in (ECHO, PROTOCOL, "/edgellm/advert/1", "/edgellm/lease/1"):
            with pytest.raises(NetworkError):
                await stranger.open_stream(host.peer, protocol)
        assert stranger.connected_peers() == host.connected_peers() == frozenset()
        with pytest.raises(NetworkError):
            await host.open_stream(stranger.peer, ECHO)


async def test_two_swarms_do_not_meet(tmp_path: Path, autojump_clock: MockClock) -> None:
    one, other = PrivateSwarm(tmp_path / "one"), PrivateSwarm(tmp_path / "other")
    async with nodes() as (hub, nursery):
        host = one.node(hub, one.home("bob"), nursery)
        asker = other.node(hub, other.home("eve"), nursery, asks=True)
        host.serve(ECHO, echo)
        with pytest.raises(NetworkError, match="no member of lab"):
            await says(asker, host.peer)


# --- who has the secret, and no right


def gate_with(swarm: PrivateSwarm, member: Identity, certificate: bytes) -> Gate:
    """Of one who knows the swarm's secret, with whatever certificate: it does not judge itself."""

    class Insolent(Gate):
        def check_own(self):  # type: ignore[no-untyped-def]
            return None

    record = swarm.record
    return Insolent("lab", record.swarm, record.secret, member, certificate, now=swarm.clock)


async def test_certificates_that_are_no_good(swarm: PrivateSwarm, autojump_clock: MockClock) -> None:
    eve, bob = Identity.generate(), Identity.generate()
    swarm.now += CERTIFICATE_S / 3
    now = swarm.now

    async def why(certificate: bytes) -> str:
        async with open_hub() as hub:
            host = hub.join(bob, Guard(gate_with(swarm, bob, certify(swarm.root, bob.peer, issued_at=now))))
            host.serve(ECHO, echo)
            network = hub.join(eve, Guard(gate_with(swarm, eve, certificate)))
            with pytest.raises(NetworkError) as caught:
                await says(network, host.peer)
            assert host.member(eve.peer) is None
        return str(caught.value)

    assert "another peer's" in await why(certify(swarm.root, bob.peer, issued_at=now))
    assert "of another swarm" in await why(certify(eve, eve.peer, issued_at=now))
    assert "not signed by the swarm" in await why(
        certify(eve, eve.peer, swarm=swarm.record.swarm, issued_at=now)
    )
    assert "expired" in await why(certify(swarm.root, eve.peer, issued_at=now - 200, lasts_s=100))
    assert "future" in await why(certify(swarm.root, eve.peer, issued_at=now + 200))
    assert "malformed" in await why(b"nonsense")


async def test_what_one_connection_said_is_of_no_use_on_another(
    swarm: PrivateSwarm, autojump_clock: MockClock
) -> None:
    """Replayed: the handshake, and so the key, is another one."""
    bob, carol = swarm.gate(swarm.home("bob")), swarm.gate(swarm.home("carol"))
    peer = carol.certificate.subject
    sealed = carol.greeting(b"h" * 32, from_dialler=True)
    assert bob.admit(peer, b"h" * 32, sealed, from_dialler=True).name == "carol"
    for handshake, from_dialler in ((b"i" * 32, True), (b"h" * 32, False)):
        with pytest.raises(MembershipError) as caught:
            bob.admit(peer, handshake, sealed, from_dialler=from_dialler)
        assert caught.value.fault == "stranger"
    with pytest.raises(MembershipError) as caught:
        bob.admit("12D3KooWEve", b"h" * 32, sealed, from_dialler=True)
    assert caught.value.fault == "stolen"


# --- revocations


async def test_the_revoked_are_thrown_out_everywhere_within_seconds(
    swarm: PrivateSwarm, autojump_clock: MockClock
) -> None:
    async with nodes() as (hub, nursery):
        maker = swarm.node(hub, swarm.maker, nursery)
        bob = swarm.node(hub, swarm.home("bob"), nursery)
        dave = swarm.node(hub, swarm.home("dave"), nursery)
        mallorys = swarm.home("mallory")
        mallory = swarm.visitor(hub, mallorys)
        for network in (maker, bob, dave):
            network.serve(ECHO, echo)
        # The maker knows bob only, and bob dave: it spreads.
        await says(maker, bob.peer)
        await says(bob, dave.peer)
        streams = [await mallory.open_stream(network.peer, ECHO) for network in (maker, bob, dave)]
        for stream in streams:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"

        swarm.maker.revoke(mallorys.member().peer)
        begun = trio.current_time()
        for stream in streams:
            with trio.fail_after(10), pytest.raises(NetworkError):
                await stream.receive_some()
        assert trio.current_time() - begun < 5
        for network in (maker, bob, dave):
            assert network.member(mallory.peer) is None
            with pytest.raises(NetworkError, match="revoked"):
                await says(mallory, network.peer)
        assert await says(maker, bob.peer) == "hello"


async def test_who_is_forgotten_while_it_connects_is_thrown_out(
    swarm: PrivateSwarm, autojump_clock: MockClock
) -> None:
    async with nodes() as (hub, nursery):
        bob = swarm.node(hub, swarm.home("bob"), nursery)
        mallory = swarm.visitor(hub, swarm.home("mallory"))
        bob.serve(ECHO, echo)
        await says(mallory, bob.peer)
        assert bob.doorkeeper is not None
        # As when it was revoked between its greeting and the muxer: there was no connection yet to be ended.
        bob.doorkeeper.gate.forget(mallory.peer)  # type: ignore[attr-defined]
        await bob.connect(mallory.addresses[0])
        assert mallory.peer in bob.connected_peers()
        await trio.sleep(2)
        assert mallory.peer not in bob.connected_peers()


async def test_one_that_was_revoked_notices(swarm: PrivateSwarm, autojump_clock: MockClock) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with nodes() as (hub, nursery):
            maker = swarm.node(hub, swarm.maker, nursery)
            bobs = swarm.home("bob")
            bob = swarm.node(hub, bobs, nursery)
            maker.serve(ECHO, echo)
            await says(bob, maker.peer)
            (bobs.directory / "revocations").write_bytes(
                seal_revocations(swarm.root, Revocations().with_peer(bob.peer, swarm.now))
            )
            await trio.sleep(5)
    assert caught.group_contains(MembershipError, match="was revoked", depth=None)


async def test_who_leaves_has_left(swarm: PrivateSwarm, autojump_clock: MockClock) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with nodes() as (hub, nursery):
            bobs = swarm.home("bob")
            swarm.node(hub, bobs, nursery)
            await trio.sleep(2)
            bobs.forget()
            await trio.sleep(5)
    assert caught.group_contains(MembershipError, match="has left lab", depth=None)


async def test_lists_that_are_older_or_not_the_swarms_change_nothing(
    swarm: PrivateSwarm, autojump_clock: MockClock
) -> None:
    gate, peer = swarm.gate(swarm.home("bob")), Identity.generate().peer
    first = Revocations().with_peer(peer, swarm.now)
    second = first.with_peer(Identity.generate().peer, swarm.now)
    assert gate.learn(seal_revocations(swarm.root, second))
    assert not gate.learn(seal_revocations(swarm.root, first))
    with pytest.raises(MembershipError):
        gate.learn(seal_revocations(Identity.generate(), Revocations(99, first.revoked)))
    assert gate.revocations == 2


async def test_who_comes_late_learns_the_list(swarm: PrivateSwarm, autojump_clock: MockClock) -> None:
    gone = swarm.home("gone").member().peer
    late = swarm.home("late")
    swarm.maker.revoke(gone)
    async with nodes() as (hub, nursery):
        maker = swarm.node(hub, swarm.maker, nursery)
        node = swarm.node(hub, late, nursery)
        maker.serve(ECHO, echo)
        await says(node, maker.peer)
        await trio.sleep(3)
        assert late.revocations().peers == {gone}


async def test_a_membership_that_ends_ends_its_connections(
    swarm: PrivateSwarm, autojump_clock: MockClock
) -> None:
    async with nodes() as (hub, nursery):
        host = swarm.node(hub, swarm.home("bob"), nursery)
        shorts = swarm.home("short", lasts_s=3600.0)
        short = hub.join(shorts.member(), Guard(swarm.gate(shorts)))
        host.serve(ECHO, echo)
        stream = await short.open_stream(host.peer, ECHO)
        swarm.now += 3600 + 120
        with trio.fail_after(5), pytest.raises(NetworkError):
            await stream.receive_some()


# --- becoming a member, and staying one


async def applied(
    hub: MemoryHub, issuer: MemoryNetwork, token: bytes, identity: Identity | None = None
) -> tuple[Applicant, MemoryNetwork]:
    applicant = Applicant(token, "newcomer")
    network = hub.join(identity, applicant)
    with pytest.raises(NetworkError):
        await network.open_stream(issuer.peer, ECHO)
    hub.kill(network.peer)
    return applicant, network


async def test_an_invite_makes_a_member_and_opens_nothing_else(
    swarm: PrivateSwarm, autojump_clock: MockClock
) -> None:
    async with nodes() as (hub, nursery):
        maker = swarm.node(hub, swarm.maker, nursery)
        maker.serve(ECHO, echo)
        applicant, network = await applied(hub, maker, swarm.invite())
        assert applicant.joined is not None
        assert maker.connected_peers() == frozenset()
        record = swarm.record
        gate = Gate(
            "lab",
            record.swarm,
            applicant.joined.secret,
            network.identity,
            applicant.joined.certificate,
            now=swarm.clock,
        )
        member = hub.join(network.identity, Guard(gate))
        assert await says(member, maker.peer) == "hello"
        entry = swarm.maker.ledger().member(member.peer)
        assert entry is not None
        assert entry.name == "newcomer"


async def test_invites_that_are_refused(swarm: PrivateSwarm, autojump_clock: MockClock) -> None:
    async with nodes() as (hub, nursery):
        maker = swarm.node(hub, swarm.maker, nursery)
        once = swarm.invite()
        assert (await applied(hub, maker, once))[0].joined is not None
        assert "used up" in (await applied(hub, maker, once))[0].refused
        revoked = swarm.invitation()
        with swarm.maker.changing_ledger() as ledger:
            swarm.maker.keep_ledger(ledger.with_invite(revoked, swarm.now).revoke_invite(revoked.id))
        assert "revoked" in (await applied(hub, maker, token_of(swarm.root, revoked)))[0].refused
        mallory = Identity.generate()
        for stranger in (
            b"guess",
            token_of(mallory, swarm.invitation()),
            token_of(mallory, replace(swarm.invitation(), swarm=mallory.peer)),
        ):
            # Who has nothing of this swarm's is told nothing.
            assert (await applied(hub, maker, stranger))[0].refused == ""
        unknown = token_of(swarm.root, swarm.invitation())
        assert "nobody here made" in (await applied(hub, maker, unknown))[0].refused
        expired = swarm.invite(expires_at=swarm.now - 1)
        assert "expired" in (await applied(hub, maker, expired))[0].refused


async def test_a_key_of_another_kind_uses_nothing_up(swarm: PrivateSwarm, autojump_clock: MockClock) -> None:
    desk = Desk(swarm.maker, lambda: (), now=swarm.clock)
    token = swarm.invite()
    rsa = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
    answer = await desk.answer(swarm_pb2.Join(token=token, name="eve"), rsa, "10.0.0.9")
    assert "Ed25519" in answer.refused
    assert swarm.maker.ledger().invites[0].used_by == ()


async def test_guessing_is_slow(swarm: PrivateSwarm, autojump_clock: MockClock) -> None:
    async with nodes() as (hub, nursery):
        maker = swarm.node(hub, swarm.maker, nursery)
        guess = token_of(swarm.root, swarm.invitation())
        answers = [(await applied(hub, maker, guess))[0].refused for _ in range(20)]
        assert sum(map(bool, answers)) == EACH_PER_MINUTE
        assert answers[-1] == ""


async def test_only_the_maker_redeems(swarm: PrivateSwarm, autojump_clock: MockClock) -> None:
    async with nodes() as (hub, nursery):
        bob = swarm.node(hub, swarm.home("bob"), nursery)
        applicant, _ = await applied(hub, bob, swarm.invite())
        assert applicant.joined is None
        assert applicant.refused == ""


async def test_a_certificate_renews_itself_and_connections_live_on(
    swarm: PrivateSwarm, autojump_clock: MockClock
) -> None:
    async with nodes() as (hub, nursery):
        maker = swarm.node(hub, swarm.maker, nursery)
        bobs = swarm.home("bob")
        bob = swarm.node(hub, bobs, nursery)
        for network in (maker, bob):
            network.serve(ECHO, echo)
        stream = await bob.open_stream(maker.peer, ECHO)
        before = bobs.certificate()
        swarm.now += CERTIFICATE_S * 0.6
        await trio.sleep(3)
        after = bobs.certificate()
        assert after.subject == before.subject
        assert after.expires_at == pytest.approx(swarm.now + CERTIFICATE_S, abs=1)
        # Past the end of the one that it connected with.
        swarm.now += CERTIFICATE_S * 0.41
        await trio.sleep(3)
        assert await says(bob, maker.peer) == "hello"
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
