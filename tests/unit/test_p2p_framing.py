import math

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import NetworkError, ProtocolViolation
from edgellm.p2p.framing import MAX_MESSAGE_BYTES, MessageStream
from edgellm.p2p.varint import decode_varint, encode_varint
from edgellm.wire.envelope_pb2 import Envelope

PEER = "12D3KooWtest"


class ScriptedStream:
    """Gives the bytes of `script` in pieces of `piece_bytes`, then ends or stays silent."""

    def __init__(self, script: bytes, piece_bytes: int = 65536, *, then_silent: bool = False) -> None:
        self.peer = PEER
        self.script = script
        self.sent = b""
        self._piece_bytes = piece_bytes
        self._then_silent = then_silent

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += bytes(data)

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        await trio.lowlevel.checkpoint()
        count = min(max_bytes, self._piece_bytes)
        piece, self.script = self.script[:count], self.script[count:]
        if not piece and self._then_silent:
            await trio.sleep_forever()
        return piece

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        await trio.lowlevel.checkpoint()


async def framed(*messages: Envelope) -> bytes:
    stream = ScriptedStream(b"")
    for message in messages:
        await MessageStream(stream).send(message)
    return stream.sent


@pytest.mark.parametrize("piece_bytes", [1, 3, 65536])
async def test_messages_arrive_whole_and_in_order_however_they_are_cut(piece_bytes):
    messages = [Envelope(payload=bytes([n]) * (n * 50)) for n in range(6)]
    stream = MessageStream(ScriptedStream(await framed(*messages) + b"raw", piece_bytes))
    assert [await stream.receive(Envelope) for _ in messages] == messages
    rest = b""
    while chunk := await stream.receive_some():
        rest += chunk
    assert rest == b"raw"


async def test_an_oversize_length_is_refused_before_its_body_is_read():
    body = bytes(200_000)
    stream = ScriptedStream(encode_varint(10_000_000) + body, piece_bytes=1000)
    with pytest.raises(ProtocolViolation, match=f"{PEER}.*10000000 bytes"):
        await MessageStream(stream).receive(Envelope)
    assert len(stream.script) > len(body) - 2000


async def test_the_end_names_the_peer():
    for script in (b"", b"\x80", encode_varint(10) + b"short"):
        with pytest.raises(NetworkError, match=PEER):
            await MessageStream(ScriptedStream(script)).receive(Envelope)


async def test_silence_ends_at_the_deadline(autojump_clock):
    started = trio.current_time()
    stream = MessageStream(ScriptedStream(encode_varint(10) + b"short", then_silent=True))
    with pytest.raises(NetworkError, match=f"{PEER} sent no Envelope within 3 s"):
        await stream.receive(Envelope, timeout_s=3)
    assert trio.current_time() - started == pytest.approx(3)


async def test_no_deadline_when_asked_for_none(autojump_clock):
    stream = MessageStream(ScriptedStream(b"", then_silent=True))
    with trio.move_on_after(10_000) as waited:
        await stream.receive(Envelope, timeout_s=math.inf)
    assert waited.cancelled_caught


async def test_what_does_not_parse_is_a_protocol_violation():
    with pytest.raises(ProtocolViolation, match=f"{PEER} sent something that is no Envelope"):
        await MessageStream(ScriptedStream(b"\x03\xff\xff\xff")).receive(Envelope)


@pytest.mark.parametrize("script", [b"\x80" * 9 + b"\x01", b"\x80\x00", b"\xff" * 20])
async def test_a_malformed_length_is_a_protocol_violation(script):
    with pytest.raises(ProtocolViolation, match="malformed length"):
        await MessageStream(ScriptedStream(script)).receive(Envelope)


async def test_what_the_other_side_would_refuse_is_not_sent():
    stream = ScriptedStream(b"")
    with pytest.raises(ValueError, match="over the limit"):
        await MessageStream(stream).send(Envelope(payload=bytes(MAX_MESSAGE_BYTES)))
    assert stream.sent == b""


@given(value=st.integers(0, (1 << 63) - 1), more=st.binary(max_size=3))
def test_varints_come_back(value, more):
    encoded = encode_varint(value)
    assert decode_varint(encoded + more) == (value, len(encoded))
    assert all(decode_varint(encoded[:count]) is None for count in range(len(encoded)))


@given(garbage=st.binary(max_size=12))
def test_a_varint_is_read_in_one_way_only(garbage):
    try:
        decoded = decode_varint(garbage)
    except ValueError:
        return
    if decoded is not None:
        assert encode_varint(decoded[0]) == garbage[: decoded[1]]
