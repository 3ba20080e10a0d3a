"""Framing and flow control of overlay connections over libp2p streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import ProtocolViolation
from edgellm.overlay.framing import (
    MAX_DATA_BYTES,
    WINDOW_BYTES,
    Frame,
    FrameDecoder,
    FrameKind,
    ReceiveWindow,
    SendWindow,
)

frames = st.one_of(
    st.builds(Frame, st.just(FrameKind.DATA), st.binary(max_size=300)),
    st.builds(Frame, st.just(FrameKind.WINDOW), st.just(b""), st.integers(0, WINDOW_BYTES)),
    st.builds(Frame, st.sampled_from([FrameKind.OPENED, FrameKind.FIN, FrameKind.RESET, FrameKind.CLOSED])),
)


@given(st.lists(frames, max_size=20), st.lists(st.integers(1, 400), max_size=50))
def test_frames_survive_any_cut(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(frame.encode() for frame in sent)
    decoder = FrameDecoder()
    received = []
    for cut in cuts:
        received += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert received + decoder.feed(stream) == sent


@given(st.binary(min_size=5, max_size=200))
def test_garbage_is_frames_or_a_violation(garbage: bytes) -> None:
    try:
        for frame in FrameDecoder().feed(garbage):
            assert len(frame.data) <= MAX_DATA_BYTES
    except ProtocolViolation:
        pass


@pytest.mark.parametrize(
    "header",
    [
        b"\x00\x00\x00\x00\x00",
        b"\x07\x00\x00\x00\x00",
        b"\x02\x00\x01\x00\x01",
        b"\x03\x00\x20\x00\x01",
        b"\x04\x00\x00\x00\x01",
    ],
    ids=["kind 0", "kind 7", "data too long", "window too large", "FIN with a number"],
)
def test_violations(header: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        FrameDecoder().feed(header)


def test_an_incomplete_frame_is_bounded() -> None:
    """A header that announces too much is refused before its data is kept."""
    decoder = FrameDecoder()
    with pytest.raises(ProtocolViolation):
        decoder.feed(b"\x02\xff\xff\xff\xff" + bytes(10))


@given(st.lists(st.integers(1, MAX_DATA_BYTES), max_size=300), st.randoms(use_true_random=False))
def test_windows_agree(sizes: list[int], random: object) -> None:
    """Whatever the order of sending, consuming and granting: never above the window, and never stuck."""
    sender, receiver = SendWindow(), ReceiveWindow()
    waiting: list[int] = []
    for size in sizes:
        while sender.credit_bytes < size:
            assert waiting, "the sender is stuck though nothing is waiting to be consumed"
            sender.granted(receiver.consumed(waiting.pop(0)))
        sender.sent(size)
        receiver.received(size)
        waiting.append(size)
        assert sum(waiting) <= WINDOW_BYTES
        if random.random() < 0.5 and waiting:  # type: ignore[attr-defined]
            sender.granted(receiver.consumed(waiting.pop(0)))


def test_window_is_enforced() -> None:
    receiver = ReceiveWindow()
    for _ in range(WINDOW_BYTES // MAX_DATA_BYTES):
        receiver.received(MAX_DATA_BYTES)
    with pytest.raises(ProtocolViolation):
        receiver.received(1)
    with pytest.raises(ProtocolViolation):
        SendWindow().granted(1)
    with pytest.raises(ValueError, match="credit"):
        SendWindow().sent(WINDOW_BYTES + 1)
