"""Discovery on a network in memory: which adverts are believed, which are counted and dropped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from edgellm.discovery.check import fault
from edgellm.discovery.codec import open_advert, seal_advert
from edgellm.discovery.collect import ASK_TIMEOUT_S, Found, SequenceBook, find_hosts
from edgellm.discovery.keys import HOSTS_KEY, model_key
from edgellm.discovery.known_hosts import KnownHosts
from edgellm.discovery.publish import PROTOCOL, Publisher
from edgellm.errors import DiscoveryError, ProtocolViolation
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import PeerAddress, Stream
from edgellm.requester.discover import discover
from edgellm.testing.memory_network import MemoryNetwork, open_hub
from edgellm.types.advert import HostAdvert
from edgellm.wire import wire_pb2
from tests.unit.samples import DIGEST, GIB, advert, device

NOW = 1010.0


async def serve_envelope(network: MemoryNetwork, envelope: bytes) -> None:
    """A host that says just this, whatever it is."""

    async def answer(stream: Stream) -> None:
        messages = MessageStream(stream, max_bytes=1 << 26)
        await messages.receive(wire_pb2.AdvertRequest)
        await messages.send(wire_pb2.AdvertReply(envelope=envelope))

    network.serve(PROTOCOL, answer)
    await network.provide(HOSTS_KEY)
    await network.provide(model_key("tiny"))


async def look(network: MemoryNetwork, book: SequenceBook | None = None) -> Found:
    return await find_hosts(network, "tiny", book=book or SequenceBook(), now=lambda: NOW)


async def test_a_good_advert_is_found(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = hub.join(), hub.join()
        await Publisher(host, lambda: advert(peer=host.peer)).announce()
        found = await look(requester)
        assert [sighting.advert.name for sighting in found.sightings] == ["alice"]
        assert found.sightings[0].advert == advert(peer=host.peer)
        assert found.refused == {}
        by_digest = await discover(requester, DIGEST, book=SequenceBook(), now=lambda: NOW)
        assert [candidate.name for candidate in by_digest[0].candidates] == ["alice"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"issued_at": 500.0, "expires_at": 620.0}, "expired"),
        ({"issued_at": 2000.0, "expires_at": 2120.0}, "from the future"),
        ({"expires_at": 9000.0}, "promises for too long"),
        ({"sequence": 3}, "replayed"),
    ],
)
async def test_an_advert_that_must_not_be_believed_is_counted(
    changes: dict[str, float], reason: str, autojump_clock: MockClock
) -> None:
    async with open_hub() as hub:
        host, requester = hub.join(), hub.join()
        await serve_envelope(host, seal_advert(replace(advert(peer=host.peer), **changes), host.identity))
        found = await look(requester, SequenceBook({host.peer: 5 if reason == "replayed" else 0}))
        assert found.sightings == ()
        assert found.refused == {reason: 1}


async def test_forged_adverts_are_counted(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        thief, liar, requester = hub.join(), hub.join(), hub.join()
        victim = Identity.generate()
        await serve_envelope(thief, seal_advert(advert(peer=victim.peer), victim))
        await serve_envelope(liar, seal_advert(advert(peer=victim.peer), liar.identity))
        assert (await look(requester)).refused == {"forged": 2}


async def test_a_10_mb_advert_is_not_read(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = hub.join(), hub.join()
        await serve_envelope(host, bytes(10 << 20))
        assert (await look(requester)).refused == {"malformed": 1}


async def test_silent_dead_and_foreign_providers_cost_one_timeout(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        frozen, dead, foreign, good = (hub.join() for _ in range(4))
        requester = hub.join()
        for network in (frozen, dead, good):
            await Publisher(network, lambda network=network: advert(peer=network.peer)).announce()  # type: ignore[misc]
        await foreign.provide(model_key("tiny"))
        hub.freeze(frozen.peer)
        hub.kill(dead.peer)
        with trio.fail_after(12):
            found = await look(requester)
        assert [sighting.advert.peer for sighting in found.sightings] == [good.peer]
        assert found.refused == {"unreachable": 3}


async def test_nobody_hosts_it_says_what_is_offered(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = hub.join(), hub.join()
        await Publisher(host, lambda: advert(peer=host.peer)).announce()
        with pytest.raises(DiscoveryError, match="nobody hosts 'other'") as error:
            await discover(requester, "other", book=SequenceBook(), now=lambda: NOW)
        assert "tiny" in error.value.remedy


async def test_a_draining_host_is_not_offered(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = hub.join(), hub.join()
        await Publisher(host, lambda: replace(advert(peer=host.peer), draining=True)).announce()
        with pytest.raises(DiscoveryError):
            await discover(requester, "tiny", book=SequenceBook(), now=lambda: NOW)


async def test_what_a_host_says_of_its_end_reaches_the_planner(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        host, requester = hub.join(), hub.join()
        await Publisher(host, lambda: replace(advert(peer=host.peer), lends_until=NOW + 300.0)).announce()
        offers = await discover(requester, "tiny", book=SequenceBook(), now=lambda: NOW)
        assert offers[0].candidates[0].lends_for_s == 300.0


def test_an_end_of_lending_that_is_no_moment_is_refused() -> None:
    identity = Identity.generate()
    never = replace(advert(peer=identity.peer), lends_until=1e15)
    with pytest.raises(ProtocolViolation, match="calendar"):
        open_advert(seal_advert(never, identity))


async def test_two_versions_of_a_name_stay_apart(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        hosts, requester = [hub.join() for _ in range(3)], hub.join()
        for index, host in enumerate(hosts):
            own = advert(peer=host.peer, name=f"host-{index}")
            if index == 0:
                own = replace(own, models=(replace(own.models[0], digest="cd" * 32),))
            await serve_envelope(host, seal_advert(own, host.identity))
        versions = await discover(requester, "tiny", book=SequenceBook(), now=lambda: NOW)
        assert [(offers.digest[:2], len(offers.candidates)) for offers in versions] == [("ab", 2), ("cd", 1)]


def test_control_characters_never_reach_a_terminal() -> None:
    identity = Identity.generate()
    with pytest.raises(ProtocolViolation, match="control"):
        open_advert(seal_advert(advert(peer=identity.peer, name="\x1b[2Jmallory"), identity))


def test_numbers_that_are_none_are_refused() -> None:
    identity = Identity.generate()
    good = advert(peer=identity.peer)
    bad = replace(good, devices=(replace(good.devices[0], bandwidth_bytes_s=float("nan")),))
    with pytest.raises(ProtocolViolation, match="bandwidth"):
        open_advert(seal_advert(bad, identity))


@given(st.binary(max_size=400))
def test_garbage_is_a_violation_and_nothing_else(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        open_advert(data)


@given(
    issued=st.floats(0, 3000), lifetime=st.floats(0, 900), sequence=st.integers(0, 9), last=st.integers(0, 9)
)
def test_what_is_believed_is_current_and_new(
    issued: float, lifetime: float, sequence: int, last: int
) -> None:
    shown: HostAdvert = advert(sequence=sequence, issued_at=issued, expires_at=issued + lifetime)
    if fault(shown, signer="peer", peer="peer", now=NOW, last_sequence=last) is None:
        assert shown.expires_at >= NOW - 60
        assert shown.issued_at <= NOW + 60
        assert sequence >= last


def test_load_is_how_much_of_what_it_lends_is_lent() -> None:
    whole = replace(advert(), lent_memory_bytes=16 * GIB)
    assert whole.load == 0.75
    assert open_advert(seal_advert(whole, Identity.generate()))[1].load == 0.75
    assert replace(whole, free_memory_bytes=99 * GIB).load == 0
    assert replace(whole, free_leases=0).load == replace(whole, draining=True).load == 1
    # A host that does not say how much it lends.
    two = replace(advert(), devices=(device(), replace(device(), id="1")))
    assert two.load == 0.5
    assert replace(two, free_devices=("0", "1")).load == 0
    assert replace(two, devices=()).load == 1


def eclipsed(network: MemoryNetwork) -> MemoryNetwork:
    """One to whom the DHT names nobody."""

    async def nobody(key: str) -> tuple[PeerAddress, ...]:
        return ()

    network.find_providers = nobody  # type: ignore[method-assign]
    return network


async def test_hosts_that_answered_before_are_found_when_nobody_lists_them(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "hosts.json"
    through = "/ip4/10.0.0.1/tcp/1/p2p/somebody"
    async with open_hub() as hub:
        hosts = [hub.join() for _ in range(3)]
        for host in hosts:
            publisher = Publisher(host, lambda host=host: advert(peer=host.peer))  # type: ignore[misc]
            await publisher.announce()
        assert len((await look(hub.join(), SequenceBook(known=KnownHosts(path, [through])))).sightings) == 3
        hub.kill(hosts[2].peer)

        assert not (await look(eclipsed(hub.join()))).sightings
        began = trio.current_time()
        found = await look(eclipsed(hub.join()), SequenceBook(known=KnownHosts(path, [through])))
        assert {sighting.advert.peer for sighting in found.sightings} == {host.peer for host in hosts[:2]}
        assert found.refused == {}
        assert trio.current_time() - began < 2
        # Who is gone is forgotten; other swarms and other models have hosts of their own.
        known = KnownHosts(path, [through])
        assert {host.peer for host in known.of(model_key("tiny"), NOW)} == {host.peer for host in hosts[:2]}
        assert not known.of(model_key("other"), NOW)
        assert not known.of(model_key("tiny"), NOW + 30 * 86400)
        assert not KnownHosts(path, []).of(model_key("tiny"), NOW)
        path.write_text("{")
        assert not KnownHosts(path, [through]).of(model_key("tiny"), NOW)


async def test_hundreds_of_silent_sybils_cost_a_few_timeouts(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        good, requester = hub.join(), hub.join()
        await Publisher(good, lambda: advert(peer=good.peer)).announce()
        for _ in range(400):
            silent = hub.join()
            await silent.provide(model_key("tiny"))
            hub.freeze(silent.peer)
        began = trio.current_time()
        found = await look(requester)
        assert trio.current_time() - began <= 4 * ASK_TIMEOUT_S
        assert [sighting.advert.peer for sighting in found.sightings] == [good.peer]
        assert found.refused == {"unreachable": 400}
