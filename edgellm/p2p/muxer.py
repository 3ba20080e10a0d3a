"""Yamux with the gaps closed that a peer can fall into, or push another one into.

What is mended in py-libp2p 0.8.1, each in one method below:

* a writer without window polls every 10 ms and gives up after 5 s: it waits for the window, as long as a reader
  may reasonably pause
* a reset, and the death of a connection, look like a clean end: they are told apart
* the task that reads a connection also writes its answers (to pings and new streams), and reads nothing meanwhile:
  two busy peers soon wait for each other for ever. Answers are queued for another task
* a frozen peer is never noticed: an unanswered ping closes the connection
* a peer may send any amount beyond its window, all of it kept in memory: that closes the connection
* a peer may fill the windows of any number of streams, and leave streams half open for ever: both have a bound
* an exception out of the connection's task cancels the whole node: it ends the connection only
"""

from __future__ import annotations

import logging
import struct
from contextlib import suppress
from typing import Any

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux

from edgellm.p2p.network import WRITE_STALL_S

log = logging.getLogger(__name__)

PROTOCOL = yamux.PROTOCOL_ID
PING_INTERVAL_S = 15.0
PING_TIMEOUT_S = 20.0  # a pong may queue behind bulk data
MAX_ANSWER_BYTES = 64 * 1024  # 12 bytes a frame: a peer with 5,000 questions open is no friend

MAX_STREAMS = 2048  # of one connection, those included that only one side has closed
MAX_UNREAD_BYTES = 64 << 20  # of one connection, in all of its streams together
MAX_STREAM_WINDOW_BYTES = 4 << 20  # 16 MiB in py-libp2p; a frame may be as long as a window
LINGER_S = 10.0  # how long the other side may leave a stream open that this one is done with
_COUNT_EVERY = 64  # frames

_HEADER = struct.Struct(yamux.YAMUX_HEADER_FORMAT)
_BODY_BYTES = MAX_PLAINTEXT_LENGTH - yamux.HEADER_SIZE  # a frame is one Noise message


class FlowControlledStream(yamux.YamuxStream):
    """A stream whose writer sleeps until it has window, and whose peer must respect ours."""

    def __init__(self, stream_id: int, conn: Any, is_initiator: bool) -> None:
        self._progress = trio.Event()
        self._ended = trio.Event()
        super().__init__(stream_id, conn, is_initiator)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("send_window", "closed", "send_closed"):
            self._progress.set()
        if name in ("recv_closed", "closed") and value:
            self._ended.set()
        if name == "recv_window":
            if value < 0:
                self.conn.drop("sent more than its window")
            self.conn.count()

    async def write(self, data: bytes) -> None:
        """Sends all of `data`. Raises MuxedStreamError when the stream is closed or the peer does not read."""
        remaining = memoryview(data)
        while remaining:
            await self._until_writable()
            chunk = remaining[: min(self.send_window, _BODY_BYTES)]
            self.send_window -= len(chunk)
            header = _HEADER.pack(0, yamux.TYPE_DATA, 0, self.stream_id, len(chunk))
            await self.conn._write_frame(b"".join((header, chunk)))
            remaining = remaining[len(chunk) :]

    async def read(self, n: int | None = -1) -> bytes:
        """Up to `n` bytes. Raises MuxedStreamEOF when the peer closed, MuxedStreamReset when it did anything else."""
        try:
            received: bytes = await super().read(n)
        except MuxedStreamEOF as error:
            if self.reset_received:
                raise MuxedStreamReset("the stream was reset") from error
            raise
        return received

    async def _until_writable(self) -> None:
        while True:
            if self.closed or self.send_closed:
                raise MuxedStreamError("the stream is closed for sending")
            if self.send_window > 0:
                return
            self._progress = trio.Event()
            with trio.move_on_after(WRITE_STALL_S) as stall:
                await self._progress.wait()
            if stall.cancelled_caught:
                raise MuxedStreamError(f"the peer has not read for {WRITE_STALL_S:g} s")


async def ended(stream: FlowControlledStream) -> None:
    """Returns when nothing more can come."""
    await stream._ended.wait()


async def end(stream: FlowControlledStream) -> None:
    """Returns when both sides are done with a stream that this one has closed; resets it after `LINGER_S`."""
    with trio.move_on_after(LINGER_S) as linger:
        await ended(stream)
    if linger.cancelled_caught:
        await stream.reset()


class HardenedYamux(yamux.Yamux):
    """A connection that either works or is closed, soon, for everyone who waits on it."""

    _ping_id: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._dropped = False
        self._reader: trio.lowlevel.Task | None = None
        self._answers = bytearray()
        self._answered = trio.Event()
        self._frames = 0

    def count(self) -> None:
        """Ends the connection when its peer leaves too many streams open, or too much in them."""
        self._frames += 1
        if self._frames % _COUNT_EVERY:
            return
        if len(self.streams) > MAX_STREAMS:
            self.drop(f"has {MAX_STREAMS} streams open")
        elif sum(map(len, self.stream_buffers.values())) > MAX_UNREAD_BYTES:
            self.drop(f"has sent {MAX_UNREAD_BYTES} bytes that nobody reads")

    def drop(self, reason: str) -> None:
        """Ends the connection; its reader stops at the next frame and `start` cleans up."""
        if not self._dropped:
            self._dropped = True
            log.debug("closing the connection to peer %s: it %s", self.peer_id, reason)
            self.event_shutting_down.set()
            if self._nursery is not None:
                self._nursery.cancel_scope.cancel()

    async def start(self) -> None:
        """Serves the connection until it ends; raises nothing."""
        try:
            await super().start()
        except Exception:
            log.debug("the connection to peer %s failed", self.peer_id, exc_info=True)
        await self._cleanup_on_error()

    async def handle_incoming(self) -> None:
        """Reads frames until the connection ends."""
        self._reader = trio.lowlevel.current_task()
        await super().handle_incoming()

    async def _write_frame(self, data: bytes) -> None:
        if trio.lowlevel.current_task() is self._reader:
            self._answer(data)
            return
        async with self._write_lock:
            try:
                # Before `data`, which may belong to a stream that one of the answers acknowledges.
                await self._write_answers()
                if data:
                    await self.secured_conn.write(data)
            except Exception as error:
                self.drop(f"cannot be written to: {error!r}")
                raise

    def _answer(self, data: bytes) -> None:
        self._answers += data
        self._answered.set()
        if len(self._answers) > MAX_ANSWER_BYTES:
            self.drop("asks without reading the answers")
            raise ConnectionClosedError("the peer does not read")

    async def _write_answers(self) -> None:
        answers, self._answers = self._answers, bytearray()
        if answers:
            await self.secured_conn.write(bytes(answers))

    async def _send_answers(self) -> None:
        with suppress(Exception):  # a failed write has dropped the connection
            while True:
                await self._answered.wait()
                self._answered = trio.Event()
                await self._write_frame(b"")

    async def _measure_rtt_loop(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_answers)
            await self._keep_alive()
            nursery.cancel_scope.cancel()

    async def _keep_alive(self) -> None:
        while not self.event_shutting_down.is_set():
            with trio.move_on_after(PING_TIMEOUT_S) as timeout:
                await self._ping()
            if timeout.cancelled_caught:
                self.drop(f"answered no ping for {PING_TIMEOUT_S:g} s")
                return
            with trio.move_on_after(PING_INTERVAL_S):
                await self.event_shutting_down.wait()

    async def _ping(self) -> None:
        self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
        self._ping_event = trio.Event()
        self._ping_sent_time = trio.current_time()
        with suppress(Exception):  # a failed write has dropped the connection
            await self._write_frame(_HEADER.pack(0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, self._ping_id))
            self._ping_sent_time = trio.current_time()
            await self._ping_event.wait()


# These two modules make streams and connections by these names, whatever muxers a node is configured with.
yamux.YamuxStream = FlowControlledStream
yamux.MAX_WINDOW_SIZE = MAX_STREAM_WINDOW_BYTES
muxer_multistream.Yamux = HardenedYamux
