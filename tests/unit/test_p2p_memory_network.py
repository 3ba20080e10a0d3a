import pytest
import trio

from edgellm.errors import NetworkError
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Stream
from edgellm.testing.memory_network import WINDOW_BYTES, MemoryNetwork, open_hub
from edgellm.wire.envelope_pb2 import Envelope

ECHO = "/edgellm/echo/1"


async def echo(stream: Stream) -> None:
    while chunk := await stream.receive_some():
        await stream.send_all(chunk)


async def silent(stream: Stream) -> None:
    await trio.sleep_forever()


async def ask(network: MemoryNetwork, peer: str) -> bytes:
    stream = await network.open_stream(peer, ECHO)
    await stream.send_all(b"hello")
    await stream.aclose()
    return await stream.receive_some()


async def test_bytes_go_both_ways_with_the_right_names(autojump_clock):
    seen = []

    async def handler(stream: Stream) -> None:
        seen.append(stream.peer)
        await echo(stream)

    async with open_hub() as hub:
        a, b = hub.join(), hub.join()
        b.serve(ECHO, handler)
        stream = await a.open_stream(b.peer, ECHO)
        assert stream.peer == b.peer
        await stream.send_all(b"hello")
        assert await stream.receive_some(2) == b"he"
        assert await stream.receive_some() == b"llo"
        await stream.aclose()
        assert await stream.receive_some() == b""
        assert seen == [a.peer]
        assert a.connected_peers() == {b.peer}
        assert b.connected_peers() == {a.peer}


async def test_messages_go_over_it(autojump_clock):
    async with open_hub() as hub:
        a, b = hub.join(), hub.join()
        b.serve(ECHO, echo)
        stream = MessageStream(await a.open_stream(b.peer, ECHO))
        await stream.send(Envelope(payload=b"x"))
        assert (await stream.receive(Envelope)).payload == b"x"


async def test_unknown_peers_and_protocols_are_errors_that_name_them(autojump_clock):
    async with open_hub() as hub:
        a, b = hub.join(), hub.join()
        with pytest.raises(NetworkError, match=f"{b.peer} does not speak {ECHO}"):
            await a.open_stream(b.peer, ECHO)
        with pytest.raises(NetworkError, match="cannot reach peer nobody"):
            await a.open_stream("nobody", ECHO)


async def test_a_handler_that_raises_resets_its_own_stream_only(autojump_clock, caplog):
    async def broken(stream: Stream) -> None:
        await stream.receive_some()
        raise RuntimeError("a bug")

    async with open_hub() as hub:
        a, b = hub.join(), hub.join()
        b.serve("/edgellm/broken/1", broken)
        b.serve(ECHO, echo)
        stream = await a.open_stream(b.peer, "/edgellm/broken/1")
        await stream.send_all(b"x")
        with pytest.raises(NetworkError, match="reset"):
            await stream.receive_some()
        assert await ask(a, b.peer) == b"hello"
        assert "a bug" in caplog.text


async def test_a_writer_is_held_back_and_then_broken_by_a_reader_that_does_not_read(autojump_clock):
    async with open_hub() as hub:
        a, b = hub.join(), hub.join()
        b.serve(ECHO, silent)
        stream = await a.open_stream(b.peer, ECHO)
        with trio.move_on_after(1):
            await stream.send_all(bytes(WINDOW_BYTES))
            await stream.send_all(b"x")
            raise AssertionError("more than a window was taken")
        with pytest.raises(NetworkError, match="does not read"):
            await stream.send_all(b"x")


async def test_a_killed_peer_ends_its_streams_cleanly_and_is_gone(autojump_clock):
    async with open_hub() as hub:
        a, b = hub.join(), hub.join()
        b.serve(ECHO, echo)
        stream = await a.open_stream(b.peer, ECHO)
        hub.kill(b.peer)
        assert await stream.receive_some() == b""
        with pytest.raises(NetworkError, match="broken"):
            await stream.send_all(b"x")
        with pytest.raises(NetworkError, match="cannot reach"):
            await a.open_stream(b.peer, ECHO)
        with pytest.raises(NetworkError, match="closed"):
            await b.open_stream(a.peer, ECHO)
        assert a.connected_peers() == frozenset()
        again = hub.join(b.identity)
        again.serve(ECHO, echo)
        assert await ask(a, again.peer) == b"hello"


async def test_a_frozen_peer_gives_silence_until_it_thaws(autojump_clock):
    async with open_hub() as hub:
        a, b = hub.join(), hub.join()
        b.serve(ECHO, echo)
        stream = await a.open_stream(b.peer, ECHO)
        hub.freeze(b.peer)
        await stream.send_all(b"late")
        with trio.move_on_after(100) as waited:
            await stream.receive_some()
        assert waited.cancelled_caught
        with pytest.raises(NetworkError, match="no answer within 10 s"):
            await a.open_stream(b.peer, ECHO)
        hub.thaw(b.peer)
        assert await stream.receive_some() == b"late"


async def test_a_cut_breaks_streams_on_both_sides(autojump_clock):
    async with open_hub() as hub:
        a, b = hub.join(), hub.join()
        b.serve(ECHO, echo)
        stream = await a.open_stream(b.peer, ECHO)
        hub.cut(b.peer)
        with pytest.raises(NetworkError, match="reset"):
            await stream.receive_some()
        with pytest.raises(NetworkError, match="cannot reach"):
            await a.connect(b.addresses[0])
        hub.mend(b.peer)
        assert await a.connect(b.addresses[0]) == b.peer
        assert await ask(a, b.peer) == b"hello"


async def test_latency_is_paid_once_per_direction(autojump_clock):
    async with open_hub() as hub:
        hub.latency_s = 0.05
        a, b = hub.join(), hub.join()
        b.serve(ECHO, echo)
        stream = await a.open_stream(b.peer, ECHO)
        started = trio.current_time()
        await stream.send_all(b"x")
        await stream.receive_some()
        assert trio.current_time() - started == pytest.approx(0.1)


async def test_provider_records_live_with_their_peer_and_expire_after_it(autojump_clock):
    now = 1000.0
    async with open_hub(clock=lambda: now, provider_ttl_s=1200) as hub:
        a, b, c = hub.join(), hub.join(), hub.join()
        await a.provide("model")
        await b.provide("model")
        assert {found.peer for found in await c.find_providers("model")} == {a.peer, b.peer}
        now += 5000
        assert len(await c.find_providers("model")) == 2
        hub.kill(a.peer)
        b.withdraw("model")
        assert len(await c.find_providers("model")) == 2
        now += 1201
        assert await c.find_providers("model") == ()
