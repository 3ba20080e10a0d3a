"""Moves bytes between cells' sockets and sealed links: all connections of a carrier, in one thread of its own.

A token of a small model crosses the overlay five times in as many milliseconds, and what wakes for it has to be short:
here one wake-up is `epoll_wait`, `recv`, one cipher call and `send`. As trio tasks the same cost about three times as much.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from edgellm.epoll_thread import EpollThread, running
from edgellm.overlay.records import (
    HEADER_BYTES,
    MAX_PLAINTEXT_BYTES,
    BadRecord,
    LinkKeys,
    Opener,
    RecordKind,
    Sealer,
)
from edgellm.overlay.sockets import Parts, end_socket, send_some

# A record's beginning is read together with whatever small records follow it; the rest of a large one by itself.
_FIRST_READ_BYTES = 16 << 10
# Up to here one copy is cheaper than a second part of a system call.
_JOINED_BYTES = 64 << 10
# Larger ones wait for the last segment while the sender waits for room.
_LOW_WATER_BYTES = 128 << 10
_GONE = (errno.ENOTCONN, errno.EBADF)
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


@dataclass
class Traffic:
    """Bytes and connections between the cell and one member, by one way."""

    sent_bytes: int = 0
    received_bytes: int = 0
    connections: int = 0


class Pumps(EpollThread):
    """Made by `open_pumps`. The sockets of its connections belong to the thread, which takes orders."""

    def __init__(self) -> None:
        super().__init__()
        # What lies here does so only between a read and its encryption: one buffer serves all connections.
        self.plaintext = memoryview(bytearray(MAX_PLAINTEXT_BYTES))

    async def join(self, cell: socket.socket, link: socket.socket, keys: LinkKeys, traffic: Traffic) -> bool:
        """Join the two until both directions have ended, then close both. True if each direction ended in order; else both
        were reset, as they are when this is cancelled.

        `keys.forward` is for what this side sends. Nothing else may use the sockets meanwhile.
        """
        done = trio.Event()
        joint = _Joint(self, cell, link, keys, traffic, lambda: self.tell(done.set))
        self.order(joint.settle)
        try:
            await done.wait()
        except trio.Cancelled:
            self.order(joint.cut)
            with trio.CancelScope(shield=True):
                await done.wait()
            raise
        return joint.in_order


@asynccontextmanager
async def open_pumps() -> AsyncIterator[Pumps]:
    """A running thread for the connections of one carrier. All of them must have ended before the context does."""
    async with running(Pumps()) as pumps:
        yield pumps


class _Joint:
    """One connection. A direction that cannot write stops reading, so that at most one record of it is held here."""

    def __init__(
        self,
        pumps: Pumps,
        cell: socket.socket,
        link: socket.socket,
        keys: LinkKeys,
        traffic: Traffic,
        on_end: Callable[[], None],
    ) -> None:
        self._pumps, self._traffic, self._on_end = pumps, traffic, on_end
        self._cell, self._link = cell, link
        self._sealer, self._opener = Sealer(keys.forward), Opener(keys.backward)
        # What could not be written yet, and whether a direction has come to its end.
        self._to_link: Parts = []
        self._to_cell: Parts = []
        self._sealed_all = self._opened_all = False
        self._buffer = bytearray(_FIRST_READ_BYTES)  # grows to the largest record seen
        self._filled = 0
        self._low_water = 1
        # What each is watched for; 0: not registered, for a hang-up would be reported for ever.
        self._cell_events = self._link_events = 0
        self._ended = False
        self.in_order = False

    def cut(self) -> None:
        """End it by a reset, unless it has ended."""
        if not self._ended:
            self._end()

    def settle(self) -> None:
        """Watch for what each socket waits for now."""
        try:
            self._settle()
        except OSError:
            self._end()

    def _on_cell(self, events: int) -> None:
        try:
            if events & ~_IN and self._to_cell:
                self._to_cell = send_some(self._cell, self._to_cell)
                self._open_read()
            if events & ~_OUT and not self._sealed_all and not self._to_link:
                self._seal()
            self._settle()
        except (OSError, BadRecord):
            # Whatever broke one direction: both sockets are reset, which is how a broken connection looks.
            self._end()

    def _on_link(self, events: int) -> None:
        try:
            if events & ~_IN and self._to_link:
                self._to_link = send_some(self._link, self._to_link)
            if events & ~_OUT and not self._opened_all and not self._to_cell:
                self._read_link()
            self._settle()
        except (OSError, BadRecord):
            self._end()

    def _seal(self) -> None:
        plaintext = self._pumps.plaintext
        try:
            count = self._cell.recv_into(plaintext, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        kind = RecordKind.DATA if count else RecordKind.FIN
        self._sealed_all = not count
        header, body = self._sealer.seal(kind, plaintext[:count])
        self._traffic.sent_bytes += count
        self._to_link = send_some(self._link, [header + body] if count <= _JOINED_BYTES else [header, body])

    def _read_link(self) -> None:
        limit = _FIRST_READ_BYTES
        if self._filled >= HEADER_BYTES:
            _, length = self._opener.parse(self._buffer[:HEADER_BYTES])
            limit = max(limit, HEADER_BYTES + length)
            if limit > len(self._buffer):
                self._buffer = self._buffer[: self._filled] + bytes(limit - self._filled)
        try:
            view = memoryview(self._buffer)[self._filled : limit]
            count = self._link.recv_into(view, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not count:
            raise ConnectionResetError("the link was cut")
        self._filled += count
        self._open_read()
        self._wait_for_the_rest()

    def _wait_for_the_rest(self) -> None:
        """Of a large record the link wakes nobody for every few segments: bulk transfers spend most of their time on that."""
        missing = 1
        if self._filled >= HEADER_BYTES:
            _, length = self._opener.parse(self._buffer[:HEADER_BYTES])
            missing = max(1, min(HEADER_BYTES + length - self._filled, _LOW_WATER_BYTES))
        if missing != self._low_water:
            self._low_water = missing
            self._link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, missing)

    def _open_read(self) -> None:
        """Opens the records that are there, as far as the cell takes them."""
        view, start = memoryview(self._buffer), 0
        while not self._to_cell and not self._opened_all and self._filled - start >= HEADER_BYTES:
            header = bytes(view[start : start + HEADER_BYTES])
            kind, length = self._opener.parse(header)
            end = start + HEADER_BYTES + length
            if end > self._filled:
                break
            plaintext = self._opener.open(header, view[start + HEADER_BYTES : end])
            start = end
            if kind is RecordKind.FIN:
                self._opened_all = True
                end_of_stream(self._cell)
            else:
                self._traffic.received_bytes += len(plaintext)
                self._to_cell = send_some(self._cell, [plaintext])
        if start:
            self._filled -= start
            view[: self._filled] = view[start : start + self._filled]

    def _settle(self) -> None:
        if self._sealed_all and self._opened_all and not self._to_link and not self._to_cell:
            self.in_order = True
            self._end()
            return
        reads_cell = not self._sealed_all and not self._to_link
        reads_link = not self._opened_all and not self._to_cell
        cell_events = (_IN if reads_cell else 0) | (_OUT if self._to_cell else 0)
        link_events = (_IN if reads_link else 0) | (_OUT if self._to_link else 0)
        if cell_events != self._cell_events:
            self._pumps.change(self._cell.fileno(), self._cell_events, cell_events, self._on_cell)
            self._cell_events = cell_events
        if link_events != self._link_events:
            self._pumps.change(self._link.fileno(), self._link_events, link_events, self._on_link)
            self._link_events = link_events

    def _end(self) -> None:
        self._ended = True
        if self._cell_events:
            self._pumps.change(self._cell.fileno(), self._cell_events, 0, self._on_cell)
        if self._link_events:
            self._pumps.change(self._link.fileno(), self._link_events, 0, self._on_link)
        for end in (self._cell, self._link):
            end_socket(end, reset=not self.in_order)
        self._on_end()


def end_of_stream(cell: socket.socket) -> None:
    """After this the cell reads its end. Raises OSError unless the cell is gone altogether."""
    try:
        cell.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno not in _GONE:
            raise
