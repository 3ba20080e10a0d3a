"""The carrier's end of the handover with the cell. The cell is hostile: everything here is bounded."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Awaitable, Callable

import trio

from edgellm.overlay import handover
from edgellm.overlay.handover import BadMessage, Kind, Message
from edgellm.overlay.sockets import close_socket, prepare_tcp

_MAX_CHANNELS = 4
_CONNECT_TIMEOUT_S = 10.0
_PAUSE_S = 0.1

OutboundHandler = Callable[[socket.socket, str, int], Awaitable[None]]


class CellSide:
    """`listener` is the bound socket that the redirector connects to."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._channels: list[socket.socket] = []
        self._joined, self._gone = trio.Event(), trio.Event()
        self._waiting: dict[int, trio.MemorySendChannel[socket.socket | None]] = {}
        self._numbers = itertools.cycle(range(1, 1 << 32))

    async def serve(self, outbound: OutboundHandler) -> None:
        """Accept the cell's channels and call `outbound(socket, address, port)` for each connection it makes.

        `outbound` must not wait for the connection: it starts a task of its own.
        """
        self._listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self._listener)
                try:
                    channel, _ = self._listener.accept()
                except OSError:
                    await trio.sleep(_PAUSE_S)
                    continue
                if len(self._channels) >= _MAX_CHANNELS:
                    channel.close()
                    continue
                channel.setblocking(False)
                self._channels.append(channel)
                self._joined.set()
                nursery.start_soon(self._receive, channel, outbound)

    async def wait_gone(self) -> None:
        """Return when the redirector next ends, and with it the cell; another one may join afterwards.

        Its connections do not end by themselves: the interface that they would do it through went with it.
        """
        await self._gone.wait()

    async def connect(self, port: int) -> socket.socket | None:
        """A socket connected to `port` of the cell's own address; None where nothing listens there."""
        number = next(self._numbers)
        answer, answered = trio.open_memory_channel[socket.socket | None](1)
        self._waiting[number] = answer
        try:
            with trio.move_on_after(_CONNECT_TIMEOUT_S):
                await self._joined.wait()
                await self._send(Message(Kind.CONNECT, port, number=number))
                return await answered.receive()
        finally:
            self._waiting.pop(number, None)
            with contextlib.suppress(trio.WouldBlock):
                if (too_late := answered.receive_nowait()) is not None:
                    close_socket(too_late, reset=True)
        return None

    async def _send(self, message: Message) -> None:
        while self._channels:
            channel = self._channels[0]
            try:
                handover.send(channel, message, flags=socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(channel)
            except OSError:
                await trio.lowlevel.checkpoint()  # Its receiving task sees the end and removes it.

    async def _receive(self, channel: socket.socket, outbound: OutboundHandler) -> None:
        try:
            while True:
                try:
                    received = handover.receive(channel)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(channel)
                    continue
                if received is None:
                    return
                await self._handle(*received, outbound)
                await trio.lowlevel.checkpoint()
        except (OSError, BadMessage):
            return  # Only this channel ends: nothing that the cell sends may end the carrier.
        finally:
            self._channels.remove(channel)
            close_socket(channel)
            if not self._channels:
                self._gone.set()
                self._joined, self._gone = trio.Event(), trio.Event()

    async def _handle(
        self, message: Message, passed: socket.socket | None, outbound: OutboundHandler
    ) -> None:
        if passed is not None and not handover.is_tcp(passed):
            passed.close()
            raise BadMessage("not a TCP socket")
        if passed is not None:
            prepare_tcp(passed)
        if message.kind is Kind.OUTBOUND and passed is not None:
            await outbound(passed, message.address, message.port)
        elif message.kind in (Kind.CONNECTED, Kind.REFUSED) and message.number in self._waiting:
            self._waiting.pop(message.number).send_nowait(passed)
        elif passed is not None:
            close_socket(passed, reset=True)
