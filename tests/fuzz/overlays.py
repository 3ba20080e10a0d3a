"""What travels between the members of a cluster, and from a cell to its node."""

from __future__ import annotations

import struct

from edgellm.errors import EdgeError
from edgellm.overlay import handover
from edgellm.overlay.framing import Frame, FrameDecoder, FrameKind, ReceiveWindow, SendWindow
from edgellm.overlay.records import HEADER_BYTES, BadRecord, Opener, RecordKind, Sealer
from tests.fuzz.decoder import Decoder


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


DECODERS = (
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
