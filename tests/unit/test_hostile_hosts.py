"""Hosts that send something else than they should: what a requester makes of it, and how soon it goes elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from edgellm.errors import HostLost, ModelError, NetworkError, unwrapped
from edgellm.hosting.model_files import PROTOCOL as MODEL
from edgellm.hosting.model_files import ServedModel, serve_model_files
from edgellm.leasing import PROTOCOL as LEASE
from edgellm.leasing.hold import LeasesRefused, Wish
from edgellm.models.light import LightStore
from edgellm.models.manifest import build_manifest, digest, encode_manifest
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import PeerAddress, Stream
from edgellm.requester.model_files import fetch_model
from edgellm.testing.memory_network import MemoryHub, MemoryNetwork, open_hub
from edgellm.types.text import one_line
from edgellm.wire import wire_pb2
from tests.unit.samples import terms
from tests.unit.swarm_in_memory import TINY
from tests.unit.test_leasing_stream import hold_leases

MANIFEST = build_manifest(TINY, None)
ENCODED = encode_manifest(MANIFEST)
DIGEST = digest(MANIFEST)
LIGHT = frozenset(file.path for file in MANIFEST.light_files)

Reply = Callable[[MessageStream, wire_pb2.ModelRequest], Awaitable[None]]


def honest(hub: MemoryHub) -> MemoryNetwork:
    network = hub.join()
    serve_model_files(network, {DIGEST: ServedModel(TINY, ENCODED, LIGHT)})
    return network


def hostile(hub: MemoryHub, reply: Reply) -> MemoryNetwork:
    network = hub.join()

    async def serve(stream: Stream) -> None:
        messages = MessageStream(stream)
        await reply(messages, await messages.receive(wire_pb2.ModelRequest))

    network.serve(MODEL, serve)
    return network


async def _say(messages: MessageStream, body: bytes, size: int | None = None) -> None:
    await messages.send(wire_pb2.ModelReply(size_bytes=len(body) if size is None else size))
    await messages.stream.send_all(body)


async def another_manifest(messages: MessageStream, request: wire_pb2.ModelRequest) -> None:
    await _say(messages, ENCODED.replace(b"Llama", b"Lama_"))


async def another_file(messages: MessageStream, request: wire_pb2.ModelRequest) -> None:
    if not request.path:
        await _say(messages, ENCODED)
        return
    content = (TINY / request.path).read_bytes()
    await _say(messages, bytes(len(content)))


async def a_longer_file(messages: MessageStream, request: wire_pb2.ModelRequest) -> None:
    await (_say(messages, ENCODED) if not request.path else _say(messages, b"x" * 100, 1 << 50))


async def a_shorter_file(messages: MessageStream, request: wire_pb2.ModelRequest) -> None:
    await (_say(messages, ENCODED) if not request.path else _say(messages, b"{}"))


async def an_endless_manifest(messages: MessageStream, request: wire_pb2.ModelRequest) -> None:
    await messages.send(wire_pb2.ModelReply(size_bytes=4 << 20))
    while True:
        await messages.stream.send_all(bytes(65536))


async def a_byte_a_second(messages: MessageStream, request: wire_pb2.ModelRequest) -> None:
    await messages.send(wire_pb2.ModelReply(size_bytes=len(ENCODED)))
    for byte in ENCODED:
        await messages.stream.send_all(bytes([byte]))
        await trio.sleep(1)


async def nothing(messages: MessageStream, request: wire_pb2.ModelRequest) -> None:
    await trio.sleep_forever()


async def escapes(messages: MessageStream, request: wire_pb2.ModelRequest) -> None:
    await messages.send(wire_pb2.ModelReply(error="\x1b[2J\x1b]0;owned\x07 no" + "x" * 1000))


HOSTILE = (
    another_manifest,
    another_file,
    a_longer_file,
    a_shorter_file,
    an_endless_manifest,
    a_byte_a_second,
    nothing,
    escapes,
)


@pytest.mark.parametrize("reply", HOSTILE, ids=lambda reply: reply.__name__)
async def test_model_files_come_from_the_next_host_when_one_lies(
    reply: Reply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgellm.requester.model_files.STALL_S", 1.2)
    async with open_hub() as hub:
        hosts = [PeerAddress(hostile(hub, reply).peer), PeerAddress(honest(hub).peer)]
        began = trio.current_time()
        known = await fetch_model(hub.join(), DIGEST, hosts, LightStore(tmp_path))
        assert trio.current_time() - began <= 5
        assert digest(known.manifest) == DIGEST
        for file in MANIFEST.light_files:
            content = (known.directory / file.path).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file.sha256


@pytest.mark.parametrize("reply", HOSTILE, ids=lambda reply: reply.__name__)
async def test_of_hosts_that_lie_nothing_is_kept(
    reply: Reply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgellm.requester.model_files.STALL_S", 1.2)
    async with open_hub() as hub:
        with pytest.raises(ModelError) as caught:
            await fetch_model(
                hub.join(), DIGEST, [PeerAddress(hostile(hub, reply).peer)], LightStore(tmp_path)
            )
        assert str(caught.value).isprintable()
        assert LightStore(tmp_path).find(DIGEST) is None


def granting(hub: MemoryHub, *messages: wire_pb2.FromHost, every_s: float = 0.0) -> Wish:
    """A host that answers a reservation with these, the last one again and again."""
    network = hub.join()

    async def serve(stream: Stream) -> None:
        said = MessageStream(stream)
        await said.receive(wire_pb2.FromRequester)
        for message in messages:
            await said.send(message)
        while True:
            await trio.sleep(every_s or 1)
            await said.send(messages[-1])

    network.serve(LEASE, serve)
    return Wish(PeerAddress(network.peer), "mallory", terms())


GRANTED = wire_pb2.FromHost(granted=wire_pb2.Granted(lease="a", devices=["0"]))


@pytest.mark.parametrize(
    "answer",
    [
        wire_pb2.FromHost(granted=wire_pb2.Granted(lease="a", devices=["0", "1"])),
        wire_pb2.FromHost(granted=wire_pb2.Granted(lease="a", devices=["x" * 300_000])),
        wire_pb2.FromHost(granted=wire_pb2.Granted(lease="a", devices=["0 0"])),
        wire_pb2.FromHost(granted=wire_pb2.Granted(lease="a b", devices=["0"])),
        wire_pb2.FromHost(granted=wire_pb2.Granted(lease="", devices=["0"])),
        wire_pb2.FromHost(
            granted=wire_pb2.Granted(lease="a", devices=["0"], overlay_certificate=bytes(5000))
        ),
        wire_pb2.FromHost(
            granted=wire_pb2.Granted(
                lease="a", devices=["0"], overlay_endpoints=[wire_pb2.Endpoint(host="$(reboot)", port=1)]
            )
        ),
        wire_pb2.FromHost(
            refused=wire_pb2.Refused(code="busy\x1b[1m" * 50, reason="\x1b[2J\r\nerror: " * 100)
        ),
        wire_pb2.FromHost(heartbeat=wire_pb2.Heartbeat()),
        wire_pb2.FromHost(),
    ],
    ids=[
        "devices",
        "a long device",
        "an odd device",
        "an odd lease",
        "no lease",
        "certificate",
        "endpoint",
        "escapes",
        "heartbeat",
        "nothing",
    ],
)
async def test_a_grant_that_is_none_is_a_refusal_in_plain_words(
    answer: wire_pb2.FromHost, autojump_clock: MockClock
) -> None:
    async with open_hub() as hub:
        with pytest.raises(LeasesRefused) as refused:
            async with hold_leases(hub.join(), [granting(hub, answer)]):
                pytest.fail("nothing was granted")
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 500
        assert all(denial.code.isprintable() for denial in refused.value.denials)


async def test_a_host_cannot_take_the_id_of_anothers_lease(autojump_clock: MockClock) -> None:
    async with open_hub() as hub, hold_leases(hub.join(), [granting(hub, GRANTED)]) as leases:
        with pytest.raises(LeasesRefused, match="another's id"):
            await leases.reserve([granting(hub, GRANTED)])
        assert [lease.lease for lease in leases.held] == ["a"]


async def test_a_flood_of_news_is_dropped_not_kept(autojump_clock: MockClock) -> None:
    event = wire_pb2.FromHost(event=wire_pb2.LeaseEvent(phase="p\x1b" * 1000, detail="\x07" * 5000))
    async with (
        open_hub() as hub,
        hold_leases(hub.join(), [granting(hub, GRANTED, event, every_s=0.001)]) as leases,
    ):
        await trio.sleep(5)
        assert leases.news.statistics().current_buffer_used <= 256
        news = await leases.news.receive()
        assert (news.phase + news.detail).isprintable()
        assert len(news.phase) <= 64


async def test_a_host_that_ends_in_odd_words_is_lost_in_plain_ones(autojump_clock: MockClock) -> None:
    ended = wire_pb2.FromHost(ended=wire_pb2.Ended(reason="\x1b]8;;http://evil\x07" + "x" * 9000))
    async with open_hub() as hub:
        with pytest.raises(HostLost) as lost, unwrapped():
            async with hold_leases(hub.join(), [granting(hub, GRANTED, ended)]):
                await trio.sleep(10)
        assert str(lost.value).isprintable()
        assert len(str(lost.value)) < 700


def test_plain_text_keeps_letters_of_all_languages() -> None:
    assert one_line("Grüße, 世界 🙂", 50) == "Grüße, 世界 🙂"
    assert one_line("a\u202eb\x00c\ud800", 50) == "a?b?c?"
    assert one_line("x" * 100, 3) == "xxx"


async def test_a_stream_that_ends_in_the_middle_of_a_message_is_an_error(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        network, asker = hub.join(), hub.join()

        async def half(stream: Stream) -> None:
            await stream.send_all(b"\x7f\x0a")

        network.serve(LEASE, half)
        messages = MessageStream(await asker.open_stream(network.peer, LEASE))
        with pytest.raises(NetworkError, match="ended the stream"):
            await messages.receive(wire_pb2.FromHost)
