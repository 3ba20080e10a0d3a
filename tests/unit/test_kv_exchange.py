"""`/edgellm/kv/1` against peers that flood, lie, stall, or send garbage; and what announces and counts beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio
from trio.testing import MockClock

from edgellm.blocks.cid import Cid
from edgellm.errors import NetworkError, ProtocolViolation
from edgellm.kv import exchange
from edgellm.kv.announcer import BATCH, MAX_WAITING, Announcer
from edgellm.kv.distrust import MAX_AVOIDED, Distrust
from edgellm.kv.exchange import MAX_NAMES, PACE, PROTOCOL, Known, Use, announce, ask_find
from edgellm.kv.figures import COUNTERS, Figures, prometheus
from edgellm.kv.records import Record
from edgellm.kv.region import Region
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import PeerAddress, Stream
from edgellm.testing.memory_network import MemoryNetwork, open_hub
from edgellm.wire import wire_pb2

SCOPE = b"s" * 32
WHOLE = Region(0, 8, 0, 4)
NAME = b"n" * 32


def record(number: int = 0, holder: str = "alice", blocks: int = 1) -> Record:
    name = number.to_bytes(32, "big") if number else NAME
    cids = tuple(Cid.of(b"%d %d" % (number, block)) for block in range(blocks))
    return Record(SCOPE, name, WHOLE, cids, blocks << 20, holder, 5000.0)


@dataclass
class Script:
    """Answers as a test wants (`edgellm.kv.exchange.Answers`)."""

    known: Known = field(default_factory=Known)
    wait_s: float = 0
    refuse: str = ""
    told: list[tuple[str, bytes, tuple[str, ...], tuple[Use, ...]]] = field(default_factory=list)
    asked: int = 0

    async def find(self, peer: str, scope: bytes, names: tuple[bytes, ...], region: Region) -> Known:
        self.asked += 1
        await trio.sleep(self.wait_s)
        if self.refuse:
            raise ProtocolViolation(self.refuse)
        return self.known

    async def sample(self, peer: str, scope: bytes) -> Known:
        return self.known

    async def announce(
        self, peer: str, scope: bytes, batch: bytes, addresses: tuple[str, ...], uses: tuple[Use, ...]
    ) -> int:
        self.told.append((peer, batch, addresses, uses))
        return 7

    async def settle(self, peer: str, scope: bytes) -> None:
        await trio.sleep(self.wait_s)

    async def measure(self, peer: str, scope: bytes) -> None:
        await trio.sleep(self.wait_s)


@asynccontextmanager
async def pair(script: Script) -> AsyncIterator[tuple[MemoryNetwork, PeerAddress]]:
    async with open_hub() as hub:
        asker, answerer = hub.join(), hub.join()
        exchange.serve_records(answerer, script)
        yield asker, PeerAddress(answerer.peer)


async def test_what_is_known_travels_whole() -> None:
    records = (record(1), record(2, "bob", blocks=3))
    holders = (PeerAddress("alice", ("/ip4/10.0.0.1/tcp/1",)), PeerAddress("bob", ()))
    async with pair(Script(Known(records, holders))) as (asker, whom):
        known = await ask_find(asker, whom, SCOPE, [one.name for one in records], WHOLE)
        assert known == Known(records, holders)
        assert await ask_find(asker, whom, SCOPE, [], None) == Known(records, holders)


async def test_an_answer_that_would_be_too_long_ends_at_the_end_of_the_prompt() -> None:
    records = tuple(record(number, blocks=64) for number in range(1, 1001))
    async with pair(Script(Known(tuple(reversed(records))))) as (asker, whom):
        known = await ask_find(asker, whom, SCOPE, [one.name for one in records], WHOLE)
        assert 300 < len(known.records) < 1000
        assert known.records == records[: len(known.records)]


async def test_records_that_nobody_asked_for_are_dropped() -> None:
    async with pair(Script(Known((record(1), record(2))))) as (asker, whom):
        known = await ask_find(asker, whom, SCOPE, [record(2).name], WHOLE)
        assert known.records == (record(2),)


async def test_announcements_and_uses_travel_whole() -> None:
    script = Script()
    use = Use(NAME, WHOLE, "alice", "used", 256, 1 << 20)
    async with pair(script) as (asker, whom):
        assert await announce(asker, whom, SCOPE, b"signed", ["/ip4/10.0.0.1/tcp/1"], [use]) == 7
        assert script.told == [(asker.peer, b"signed", ("/ip4/10.0.0.1/tcp/1",), (use,))]


async def test_a_refusal_is_told_and_a_silence_ends(autojump_clock: MockClock) -> None:
    async with pair(Script(refuse="not a member")) as (asker, whom):
        with pytest.raises(NetworkError, match="not a member"):
            await ask_find(asker, whom, SCOPE, [NAME], WHOLE)
    async with pair(Script(wait_s=60)) as (asker, whom):
        begun = trio.current_time()
        with pytest.raises(NetworkError):
            await ask_find(asker, whom, SCOPE, [NAME], WHOLE, timeout_s=1.5)
        assert trio.current_time() - begun < 2.1
        with pytest.raises(NetworkError, match="in time"):
            await ask_find(asker, whom, SCOPE, [NAME], WHOLE, timeout_s=10)


async def test_one_peer_does_not_take_all_places(autojump_clock: MockClock) -> None:
    refused = []
    async with pair(Script(wait_s=1.0)) as (asker, whom), trio.open_nursery() as nursery:

        async def one() -> None:
            try:
                await exchange.ask_measure(asker, whom, SCOPE)
            except NetworkError as error:
                refused.append(str(error))

        for _ in range(20):
            nursery.start_soon(one)
    assert len(refused) == 20 - exchange.MAX_AT_ONCE_EACH
    assert all("at once" in reason for reason in refused)


async def test_a_flood_is_refused(autojump_clock: MockClock) -> None:
    script = Script()
    async with pair(script) as (asker, whom):
        refused = 0
        for _ in range(int(PACE.burst) + 50):
            try:
                await ask_find(asker, whom, SCOPE, [NAME], WHOLE)
            except NetworkError as error:
                refused += "too many" in str(error)
        assert script.asked == PACE.burst
        assert refused == 50
        await trio.sleep(1)
        await ask_find(asker, whom, SCOPE, [NAME], WHOLE)


@pytest.mark.parametrize(
    "request_",
    [
        wire_pb2.KvRequest(),
        wire_pb2.KvRequest(find=wire_pb2.KvFind(scope_id=SCOPE, names=[b"short"])),
        wire_pb2.KvRequest(find=wire_pb2.KvFind(scope_id=SCOPE, names=[NAME])),
        wire_pb2.KvRequest(find=wire_pb2.KvFind(scope_id=SCOPE, names=[NAME] * (MAX_NAMES + 1))),
        wire_pb2.KvRequest(announce=wire_pb2.KvAnnounce(addresses=["/ip4/10.0.0.1/tcp/1"] * 17)),
        wire_pb2.KvRequest(announce=wire_pb2.KvAnnounce(uses=[wire_pb2.KvUse(name=b"short")])),
    ],
)
async def test_what_is_out_of_form_is_refused(request_: wire_pb2.KvRequest) -> None:
    async with pair(Script()) as (asker, whom):
        messages = MessageStream(await asker.open_stream(whom.peer, PROTOCOL))
        await messages.send(request_)
        reply = await messages.receive(wire_pb2.KvReply)
        assert reply.refused


@pytest.mark.parametrize(
    "found",
    [
        wire_pb2.KvFound(records=[wire_pb2.KvRecord(name=NAME, holder=3)]),
        wire_pb2.KvFound(
            records=[wire_pb2.KvRecord(name=NAME, digests=b"x" * 33)], holders=[wire_pb2.KvHolder(peer="a")]
        ),
        wire_pb2.KvFound(
            records=[
                wire_pb2.KvRecord(
                    name=NAME,
                    digests=b"x" * 32,
                    size_bytes=1 << 40,
                    region=wire_pb2.KvRegion(end_layer=1, end_head=1),
                )
            ],
            holders=[wire_pb2.KvHolder(peer="a")],
        ),
        wire_pb2.KvFound(records=[wire_pb2.KvRecord(name=NAME)], holders=[wire_pb2.KvHolder(peer="a")]),
    ],
)
async def test_answers_that_cannot_be_are_violations(found: wire_pb2.KvFound) -> None:
    async with open_hub() as hub:
        asker, liar = hub.join(), hub.join()

        async def lie(stream: Stream) -> None:
            messages = MessageStream(stream)
            await messages.receive(wire_pb2.KvRequest)
            await messages.send(wire_pb2.KvReply(found=found))

        liar.serve(PROTOCOL, lie)
        with pytest.raises(ProtocolViolation):
            await ask_find(asker, PeerAddress(liar.peer), SCOPE, [NAME], WHOLE)


@asynccontextmanager
async def announcing(fail: int = 0) -> AsyncIterator[tuple[Announcer[int], list[Sequence[int]], list[int]]]:
    told: list[Sequence[int]] = []
    lost: list[int] = []
    failures = fail

    async def tell(batch: Sequence[int]) -> None:
        nonlocal failures
        await trio.lowlevel.checkpoint()
        if failures:
            failures -= 1
            raise NetworkError("the tracker is gone")
        told.append(batch)

    announcer: Announcer[int] = Announcer(tell, lost.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.run)
        yield announcer, told, lost
        nursery.cancel_scope.cancel()


async def test_announcements_go_in_batches(autojump_clock: MockClock) -> None:
    async with announcing() as (announcer, told, _):
        for number in range(BATCH + 10):
            announcer.say(number)
        await announcer.settle()
        assert [len(batch) for batch in told] == [BATCH, 10]
        begun = trio.current_time()
        await announcer.settle()
        assert trio.current_time() == begun


async def test_announcements_are_tried_again_and_then_given_up(autojump_clock: MockClock) -> None:
    async with announcing(fail=2) as (announcer, told, lost):
        announcer.say(1)
        await announcer.settle()
        assert (told, lost) == ([[1]], [])
    async with announcing(fail=3) as (announcer, told, lost):
        announcer.say(1)
        await announcer.settle()
        announcer.say(2)
        await announcer.settle()
        assert (told, lost) == ([[2]], [1])


def test_a_queue_that_nobody_empties_is_bounded() -> None:
    lost: list[int] = []

    async def tell(batch: Sequence[int]) -> None: ...

    announcer: Announcer[int] = Announcer(tell, lost.append)
    for number in range(MAX_WAITING + 5):
        announcer.say(number)
    assert sum(lost) == 5


def test_distrust_ends_and_is_bounded() -> None:
    distrust = Distrust()
    distrust.avoid(SCOPE, "mallory", 10.0)
    distrust.avoid(SCOPE, "mallory", 5.0)
    assert distrust.avoided(SCOPE, "mallory", 9.9)
    assert not distrust.avoided(SCOPE, "mallory", 10.0)
    assert not distrust.avoided(b"t" * 32, "mallory", 1.0)
    for number in range(MAX_AVOIDED + 1):
        distrust.avoid(SCOPE, f"peer {number}", 10.0)
    assert not distrust.avoided(SCOPE, "mallory", 1.0)


def test_figures_are_handed_over_once() -> None:
    figures = Figures()
    figures.add("bytes_in", 5)
    figures.add("bytes_in")
    assert figures.take() == {"bytes_in": 6}
    assert figures.take() == {}
    text = prometheus({"bytes_in": 6, "seconds_saved": 0.5})
    assert "edgellm_kv_bytes_in_total 6\n" in text
    assert "edgellm_kv_seconds_saved_total 0.5\n" in text
    assert text.count("# TYPE") == len(COUNTERS)
    assert replace(record(1), holder="bob").holder == "bob"
