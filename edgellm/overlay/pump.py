"""Moves bytes between a cell's socket and a sealed link until both directions have ended."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

import trio

from edgellm.overlay.records import (
    HEADER_BYTES,
    MAX_PLAINTEXT_BYTES,
    BadRecord,
    LinkKeys,
    Opener,
    RecordKind,
    Sealer,
)
from edgellm.overlay.sockets import close_socket, receive_exactly, send_all

# Other connections get their turn at least after so many bytes of one that never has to wait.
_TURN_BYTES = 1 << 20
_GONE = (errno.ENOTCONN, errno.EBADF)


@dataclass
class Traffic:
    """Bytes and connections between the cell and one member, by one way."""

    sent_bytes: int = 0
    received_bytes: int = 0
    connections: int = 0


# Plaintext lives here only between a read and its encryption, with no await between: one buffer serves all.
_plaintext = memoryview(bytearray(MAX_PLAINTEXT_BYTES))


async def pump(cell: socket.socket, link: socket.socket, keys: LinkKeys, traffic: Traffic) -> bool:
    """Join the two, close both. True if each direction ended in order; else both were reset.

    `keys.forward` is for what this side sends.
    """
    in_order = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_seal, cell, link, Sealer(keys.forward), traffic)
            nursery.start_soon(_open, link, cell, Opener(keys.backward), traffic)
        in_order = True
    except* (OSError, trio.ClosedResourceError, BadRecord):
        pass  # Whatever broke one direction: both sockets are reset, which is how a broken connection looks.
    finally:
        close_socket(cell, reset=not in_order)
        close_socket(link, reset=not in_order)
    return in_order


async def _seal(cell: socket.socket, link: socket.socket, sealer: Sealer, traffic: Traffic) -> None:
    turn = 0
    while True:
        try:
            count = cell.recv_into(_plaintext, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(cell)
            turn = 0
            continue
        if count == 0:
            await send_all(link, *sealer.seal(RecordKind.FIN, b""))
            return
        await send_all(link, *sealer.seal(RecordKind.DATA, _plaintext[:count]))
        traffic.sent_bytes += count
        turn += count
        if turn >= _TURN_BYTES:
            await trio.lowlevel.checkpoint()
            turn = 0


async def _open(link: socket.socket, cell: socket.socket, opener: Opener, traffic: Traffic) -> None:
    header = bytearray(HEADER_BYTES)
    buffer = bytearray()  # grows to the largest record seen: most connections never have a large one
    turn = 0
    while True:
        if not await receive_exactly(link, memoryview(header)):
            raise ConnectionResetError("the link was cut")
        kind, length = opener.parse(header)
        if length > len(buffer):
            buffer = bytearray(length)
        body = memoryview(buffer)[:length]
        if not await receive_exactly(link, body):
            raise ConnectionResetError("the link was cut")
        plaintext = opener.open(header, body)
        if kind is RecordKind.FIN:
            end_of_stream(cell)
            return
        await send_all(cell, plaintext)
        traffic.received_bytes += len(plaintext)
        turn += length
        if turn >= _TURN_BYTES:
            await trio.lowlevel.checkpoint()
            turn = 0


def end_of_stream(cell: socket.socket) -> None:
    try:
        cell.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno not in _GONE:
            raise
