"""Moves bytes between a cell's socket and a framed connection, whose other end the node joins to libp2p."""

from __future__ import annotations

import socket
from collections import deque

import trio

from edgellm.errors import ProtocolViolation
from edgellm.overlay.framing import (
    MAX_DATA_BYTES,
    Frame,
    FrameDecoder,
    FrameKind,
    ReceiveWindow,
    SendWindow,
)
from edgellm.overlay.pump import Traffic, end_of_stream
from edgellm.overlay.sockets import close_socket, receive_into, send_all

OPEN_TIMEOUT_S = 30.0


class _Broken(Exception):
    """The connection ended in disorder."""


class FramedConnection:
    """`stream` is a Unix stream socket; what goes over it are frames."""

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        self._stream = stream
        self._decoder = FrameDecoder()
        self._frames: deque[Frame] = deque()
        self._send_lock = trio.Lock()
        self._send_window = SendWindow()
        self._receive_window = ReceiveWindow()
        self._credit = trio.Event()
        self._arrived = trio.Event()
        self._data: deque[bytes] = deque()
        self._ended = False
        self._buffer = memoryview(bytearray(MAX_DATA_BYTES))

    async def wait_opened(self) -> bool:
        """Whether the other side reached its cell's port."""
        try:
            with trio.fail_after(OPEN_TIMEOUT_S):
                return (await self._next_frame()).kind is FrameKind.OPENED
        except (_Broken, OSError, ProtocolViolation, trio.TooSlowError):
            return False

    async def answer(self, opened: bool) -> None:
        """Tell the other side whether its port was reached. Raises `OSError`."""
        await self._send(Frame(FrameKind.OPENED if opened else FrameKind.RESET))

    def close(self) -> None:
        """Close the stream; before both sides have sent CLOSED that is a reset."""
        close_socket(self._stream)

    async def pump(self, cell: socket.socket, traffic: Traffic) -> bool:
        """Join the two, close both. True if each direction ended in order; else the cell's was reset."""
        in_order = False
        try:
            async with trio.open_nursery() as reading:
                reading.start_soon(self._from_stream)
                async with trio.open_nursery() as both:
                    both.start_soon(self._from_cell, cell, traffic)
                    both.start_soon(self._to_cell, cell, traffic)
                await self._send(Frame(FrameKind.CLOSED))
            in_order = True
        except* (OSError, trio.ClosedResourceError, ProtocolViolation, _Broken):
            pass  # Whatever broke one direction breaks the connection; both sides see a reset.
        finally:
            close_socket(cell, reset=not in_order)
            self.close()
        return in_order

    async def _from_cell(self, cell: socket.socket, traffic: Traffic) -> None:
        buffer = memoryview(bytearray(MAX_DATA_BYTES))
        while True:
            while not self._send_window.credit_bytes:
                self._credit = trio.Event()
                await self._credit.wait()
            count = await receive_into(cell, buffer[: self._send_window.credit_bytes])
            if count == 0:
                await self._send(Frame(FrameKind.FIN))
                return
            self._send_window.sent(count)
            await self._send(Frame(FrameKind.DATA, bytes(buffer[:count])))
            traffic.sent_bytes += count

    async def _from_stream(self) -> None:
        while (frame := await self._next_frame()).kind is not FrameKind.CLOSED:
            match frame.kind:
                case FrameKind.DATA:
                    self._receive_window.received(len(frame.data))
                    self._data.append(frame.data)
                    self._arrived.set()
                case FrameKind.WINDOW:
                    self._send_window.granted(frame.credit_bytes)
                    self._credit.set()
                case FrameKind.FIN:
                    self._ended = True
                    self._arrived.set()
                case _:
                    raise _Broken(frame.kind.name)

    async def _to_cell(self, cell: socket.socket, traffic: Traffic) -> None:
        while True:
            while self._data:
                data = self._data.popleft()
                await send_all(cell, data)
                traffic.received_bytes += len(data)
                if credit := self._receive_window.consumed(len(data)):
                    await self._send(Frame(FrameKind.WINDOW, credit_bytes=credit))
            if self._ended:
                end_of_stream(cell)
                return
            self._arrived = trio.Event()
            await self._arrived.wait()

    async def _next_frame(self) -> Frame:
        while not self._frames:
            count = await receive_into(self._stream, self._buffer)
            if count == 0:
                raise _Broken("the stream ended")
            self._frames.extend(self._decoder.feed(self._buffer[:count]))
        return self._frames.popleft()

    async def _send(self, frame: Frame) -> None:
        async with self._send_lock:
            await send_all(self._stream, frame.encode())
