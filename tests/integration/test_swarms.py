"""Private swarms over real libp2p: what a stranger gets, and how soon it is cut."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from edgellm.discovery.collect import SequenceBook, find_hosts
from edgellm.discovery.keys import HOSTS_KEY
from edgellm.errors import DiscoveryError, EdgeError, MembershipError, NetworkError
from edgellm.p2p.greeting import NoiseGreeting
from edgellm.p2p.identity import Identity
from edgellm.p2p.mdns import _addresses_of, _service
from edgellm.p2p.network import Stream
from edgellm.p2p.node import LibP2PNetwork, NodeConfig, open_node
from edgellm.swarms.exchange import Guard
from edgellm.swarms.gate import Gate
from edgellm.swarms.invite import Invite, read, token_of, written
from edgellm.swarms.join import join_swarm
from edgellm.swarms.member_node import open_swarm_node
from edgellm.swarms.store import SwarmHome
from tests.unit.swarms_in_memory import BOTH, PrivateSwarm, certify

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
ECHO = "/edgellm/test/echo/1"


@pytest.fixture
def swarm(tmp_path: Path) -> PrivateSwarm:
    return PrivateSwarm(tmp_path)


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


@asynccontextmanager
async def node(home: SwarmHome, *bootstrap: str, asks: bool = False) -> AsyncIterator[LibP2PNetwork]:
    config = NodeConfig(
        identity=Identity.generate() if asks else home.member(),
        listen=() if asks else LOOPBACK,
        bootstrap=bootstrap,
        dht_server=not asks,
    )
    async with open_swarm_node(config, home) as network:
        network.serve(ECHO, echo)
        yield network


def port_of(network: LibP2PNetwork) -> int:
    return int(network.addresses[0].split("/")[4])


async def says(network: LibP2PNetwork, other: LibP2PNetwork) -> bytes:
    stream = await network.open_stream(other.peer, ECHO, addresses=other.addresses)
    await stream.send_all(b"hello")
    with trio.fail_after(5):
        return await stream.receive_some()


async def invite(swarm: PrivateSwarm, uses: int = 1) -> bytes:
    made = Invite(
        swarm=swarm.record.swarm,
        name="lab",
        id="a1" * 8,
        roles=BOTH,
        uses=uses,
        expires_at=time.time() + 600,
        issuer=swarm.record.issuer,
        addresses=tuple(address.rpartition("/p2p/")[0] for address in swarm.maker.addresses()),
    )
    with swarm.maker.changing_ledger() as ledger:
        swarm.maker.keep_ledger(ledger.with_invite(made, time.time()))
    return read(written(token_of(swarm.root, made)))


async def test_an_invite_is_all_that_it_takes(swarm: PrivateSwarm) -> None:
    async with node(swarm.maker) as maker:
        token = await invite(swarm)
        home = await join_swarm(token, swarm.paths("bob"), "bob")
        assert home.certificate().roles == BOTH
        with pytest.raises(MembershipError, match="used up"):
            await join_swarm(token, swarm.paths("carol"), "carol")
        with pytest.raises(MembershipError, match="a member already"):
            await join_swarm(token, swarm.paths("bob"), "bob")
        assert maker.connected_peers() == frozenset()
        known = (home.directory / "bootstrap").read_text().split()
        async with node(home, *known) as host, node(home, *known, asks=True) as asker:
            assert await says(asker, host) == b"hello"
            seen = host.member(asker.peer)
            assert seen is not None
            assert seen.name == "bob"
            await host.provide(HOSTS_KEY)
            assert host.peer in {found.peer for found in await asker.find_providers(HOSTS_KEY)}


async def test_an_answer_that_is_lost_costs_no_use(
    swarm: PrivateSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise NetworkError("the answer is lost")

    async with node(swarm.maker):
        token = await invite(swarm)
        with monkeypatch.context() as patch, pytest.raises(NetworkError):
            patch.setattr("edgellm.swarms.join.keep_membership", lost)
            await join_swarm(token, swarm.paths("bob"), "bob")
        await join_swarm(token, swarm.paths("bob"), "bob")
        assert [path.name for path in (swarm.paths("bob").state / "swarms").iterdir()] == ["lab"]
        with swarm.maker.changing_ledger() as ledger:
            assert len(ledger.members) == 2


async def test_a_stranger_gets_nothing_and_is_cut_within_a_second(swarm: PrivateSwarm) -> None:
    async with node(swarm.maker) as maker:
        await maker.provide(HOSTS_KEY)
        begun = trio.current_time()
        with pytest.raises(DiscoveryError):
            async with open_node(
                NodeConfig(Identity.generate(), (), bootstrap=maker.addresses, dht_server=False)
            ):
                pass
        assert trio.current_time() - begun < 5
        async with open_node(NodeConfig(Identity.generate(), LOOPBACK)) as stranger:
            for protocol in (
                ECHO,
                "/edgellm/advert/1",
                "/edgellm/lease/1",
                "/edgellm/kad/1.0.0",
                "/edgellm/swarm/1",
                "/ipfs/id/1.0.0",
                "/ipfs/ping/1.0.0",
            ):
                with pytest.raises(NetworkError):
                    await stranger.open_stream(maker.peer, protocol, addresses=maker.addresses, timeout_s=3)
            assert await stranger.find_providers(HOSTS_KEY) == ()
            found = await find_hosts(stranger, None, book=SequenceBook(), now=time.time)
            assert found.sightings == ()
            # Nor does a member go to a stranger.
            with pytest.raises(NetworkError):
                await maker.open_stream(stranger.peer, ECHO, addresses=stranger.addresses, timeout_s=3)
        assert maker.connected_peers() == frozenset()


@pytest.mark.parametrize("trickles", [False, True])
async def test_one_who_completes_the_handshake_and_says_little_is_cut(
    swarm: PrivateSwarm, trickles: bool
) -> None:
    """Slow loris, as far in as a stranger gets."""

    async def trickle(greeting: NoiseGreeting) -> None:
        with suppress(Exception):
            await greeting._session.write(b"\x0f\xff")  # 4 kB will follow
            while True:
                await greeting._session.write(b"x")
                await trio.sleep(0.1)

    class Silent(Guard):
        cut_after_s = 0.0

        async def outbound(self, greeting):  # type: ignore[no-untyped-def]
            begun = trio.current_time()
            if trickles:
                nursery.start_soon(trickle, greeting)
            try:
                with trio.fail_after(5):
                    said = await greeting.receive(1 << 16)
            except NetworkError:
                Silent.cut_after_s = trio.current_time() - begun
                raise
            raise AssertionError(f"a stranger was told {said!r}")

    gate = swarm.gate(swarm.maker)
    async with (
        node(swarm.maker) as maker,
        trio.open_nursery() as nursery,
        open_node(NodeConfig(Identity.generate(), (), doorkeeper=Silent(gate))) as stranger,
    ):
        with pytest.raises(NetworkError):
            await stranger.open_stream(maker.peer, ECHO, addresses=maker.addresses)
        assert 0.5 < Silent.cut_after_s < 1.5  # 0.9 s, and what a busy machine adds


async def test_one_who_never_begins_is_cut(swarm: PrivateSwarm) -> None:
    async with node(swarm.maker) as maker:
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(maker))
        begun = trio.current_time()
        with trio.fail_after(5):
            while await stream.receive_some():
                pass
        assert trio.current_time() - begun < 4
        assert await trio.to_thread.run_sync(_is_open, port_of(maker))


def _is_open(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 3):
        return True


async def test_a_stolen_certificate_is_of_no_use(swarm: PrivateSwarm) -> None:
    """Everything of bob's but his key: the secret, and his certificate."""

    class Thief(Gate):
        def check_own(self):  # type: ignore[no-untyped-def]
            return None

    bobs, eve, record = swarm.home("bob"), Identity.generate(), swarm.record
    now = swarm.clock
    async with node(swarm.maker) as maker:

        async def tries(certificate: bytes) -> str:
            gate = Thief("lab", record.swarm, record.secret, eve, certificate, now=now)
            async with open_node(NodeConfig(eve, (), doorkeeper=Guard(gate))) as network:
                with pytest.raises(NetworkError) as caught:
                    await network.open_stream(maker.peer, ECHO, addresses=maker.addresses)
            assert maker.member(eve.peer) is None
            return str(caught.value)

        assert "another peer's" in await tries(bobs.certificate_envelope())
        assert "not signed by the swarm" in await tries(certify(eve, eve.peer, swarm=record.swarm))
        assert "expired" in await tries(certify(swarm.root, eve.peer, issued_at=time.time() - 60, lasts_s=30))


async def until_cut(stream: Stream) -> None:
    """Talks until the stream breaks or ends."""
    try:
        while True:
            await stream.send_all(b"hello")
            if not await stream.receive_some():
                return
            await trio.sleep(0.05)
    except NetworkError:
        return


async def test_who_is_revoked_is_thrown_out_within_seconds(swarm: PrivateSwarm) -> None:
    bobs, carols = swarm.home("bob"), swarm.home("carol")
    async with node(swarm.maker) as maker, node(carols, *maker.addresses) as carol:
        with pytest.raises(EdgeError) as caught:
            async with node(bobs, *maker.addresses, asks=True) as bob:
                streams = [
                    await bob.open_stream(other.peer, ECHO, addresses=other.addresses)
                    for other in (maker, carol)
                ]
                swarm.maker.revoke(bobs.member().peer)
                with trio.fail_after(6):
                    for stream in streams:
                        await until_cut(stream)
                # It learns at its next try, at the latest.
                await says(bob, carol)
                await trio.sleep(10)
        assert "revoked" in str(caught.value)
        with pytest.raises(MembershipError, match="do not let this machine in: the membership was revoked"):
            async with node(bobs, *maker.addresses, asks=True):
                pytest.fail("it is in")
        assert await says(carol, maker) == b"hello"


def test_what_is_announced_on_the_local_network_is_for_members_alone(swarm: PrivateSwarm) -> None:
    gate, other = swarm.gate(swarm.maker), Identity.generate()
    address = f"/ip4/192.0.2.7/tcp/4001/p2p/{other.peer}"
    announced = _service([address], gate.beacon_key)
    assert other.peer.encode() not in announced.text
    assert _addresses_of(announced, gate.beacon_key) == [address]
    assert _addresses_of(announced) == []
    assert _addresses_of(announced, bytes(32)) == []
    assert _addresses_of(_service([address]), gate.beacon_key) == []
