"""What travels between the members of a cluster, and from a cell to its node."""

from __future__ import annotations

import struct
from typing import Any

from edgellm.cluster.switchboard import PlanInForce, Switchboard
from edgellm.errors import EdgeError
from edgellm.overlay import handover
from edgellm.overlay.framing import Frame, FrameDecoder, FrameKind, ReceiveWindow, SendWindow
from edgellm.overlay.records import HEADER_BYTES, BadRecord, Opener, RecordKind, Sealer
from edgellm.wire import wire_pb2
from tests.fuzz.decoder import Decoder
from tests.fuzz.leases import sample_plan
from tests.fuzz.peer import Bytes, Serving, in_trio, prefixed


def read_overlay_frames(data: bytes) -> None:
    decoder, sending, receiving = FrameDecoder(), SendWindow(), ReceiveWindow()
    for start in range(0, len(data), 13):
        for frame in decoder.feed(data[start : start + 13]):
            if frame.kind is FrameKind.WINDOW:
                sending.granted(frame.credit_bytes)
            elif frame.kind is FrameKind.DATA:
                receiving.received(len(frame.data))


def read_record(data: bytes) -> None:
    opener = Opener(bytes(16))
    while len(data) >= HEADER_BYTES:
        header, data = data[:HEADER_BYTES], data[HEADER_BYTES:]
        _, length = opener.parse(header)
        body, data = data[:length], data[length:]
        opener.open(header, body)


def sample_records() -> list[bytes]:
    sealer = Sealer(bytes(16))
    return [b"".join(b"".join(sealer.seal(RecordKind.DATA, text)) for text in (b"hello", b"world"))]


def read_handover(data: bytes) -> None:
    ours, theirs = handover.channel_pair()
    with ours, theirs:
        theirs.send(data[:4096] or b"\x00")
        theirs.close()
        ours.setblocking(False)
        received = handover.receive(ours)
        if received is not None and received[1] is not None:
            received[1].close()


class Accepts:
    async def accept_stream(self, stream: Any, source_address: str, port: int) -> None:
        assert source_address in (each.address for each in sample_plan().members)
        assert 0 < port < 65536
        while await stream.receive_some():
            pass


def read_opening(data: bytes) -> None:
    network: Any = Serving()
    board = Switchboard(network)
    (handler,) = network.handlers.values()
    with board.connect(PlanInForce(sample_plan()), "10.88.7.2", Accepts()):
        in_trio(lambda: handler(Bytes(data)))


def read_opened(data: bytes) -> None:
    network: Any = Serving(Bytes(data))
    opener = Switchboard(network).opener(PlanInForce(sample_plan()), "10.88.7.1")

    async def use() -> None:
        stream = await opener("10.88.7.2", 7000)
        while await stream.receive_some():
            pass

    in_trio(use)


def _openings() -> list[bytes]:
    opening = wire_pb2.OverlayOpen(
        cluster="c" * 32, source_address="10.88.7.1", target_address="10.88.7.2", port=7000
    )
    return [prefixed(opening) + b"hello"]


DECODERS = (
    Decoder("overlay openings", read_opening, _openings),
    Decoder(
        "overlay replies",
        read_opened,
        lambda: [
            prefixed(wire_pb2.OverlayReply()) + b"hello",
            prefixed(wire_pb2.OverlayReply(error="not a member of this cluster")),
        ],
        share=0.5,
    ),
    Decoder(
        "overlay frames",
        read_overlay_frames,
        lambda: [
            Frame(FrameKind.DATA, data=b"hello").encode() + Frame(FrameKind.WINDOW, credit_bytes=9).encode()
        ],
    ),
    Decoder("overlay records", read_record, sample_records, (EdgeError, BadRecord)),
    Decoder(
        "handover",
        read_handover,
        lambda: [struct.pack("!BxH4sI", handover.Kind.INBOUND, 7, bytes((10, 88, 0, 1)), 0)],
        (EdgeError, handover.BadMessage, BlockingIOError),
    ),
)
