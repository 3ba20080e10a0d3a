"""Messages by which connected sockets change hands between processes (SCM_RIGHTS, unix(7)).

One message is one packet of an AF_UNIX SOCK_SEQPACKET socket, with at most one descriptor. Two uses:

    redirector -> carrier  OUTBOUND   address, port, the accepted socket    the cell wants to reach a member
    carrier -> redirector  CONNECT    number, port                          a member wants to reach the cell
    redirector -> carrier  CONNECTED  number, the connected socket
    redirector -> carrier  REFUSED    number

    carrier -> node        OUTBOUND   address, port, a Unix socket          to be joined to a libp2p stream
    node -> carrier        INBOUND    address, port, a Unix socket          a libp2p stream from that member

Standard library only: the cell imports this.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

# kind, port, IPv4 address, number
_FORMAT = struct.Struct("!BxH4sI")


class Kind(IntEnum):
    OUTBOUND = 1
    CONNECT = 2
    CONNECTED = 3
    REFUSED = 4
    INBOUND = 5


@dataclass(frozen=True)
class Message:
    kind: Kind
    port: int = 0
    address: str = "0.0.0.0"
    number: int = 0


class BadMessage(Exception):
    """What arrived is not a message of this protocol."""


def channel() -> socket.socket:
    """An unconnected socket of the right kind."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ones."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(on: socket.socket, message: Message, passed: socket.socket | None = None, flags: int = 0) -> None:
    """Send one message. The caller still owns `passed` and closes it."""
    packet = _FORMAT.pack(message.kind, message.port, socket.inet_aton(message.address), message.number)
    socket.send_fds(on, [packet], [passed.fileno()] if passed else [], flags)


def receive(on: socket.socket) -> tuple[Message, socket.socket | None] | None:
    """The next message and the socket that came with it, None at the end of the channel.

    Never waits: raises `BlockingIOError` when nothing is there. Raises `BadMessage`, with all descriptors
    closed, for anything else than a whole message with at most one stream socket.
    """
    packet, fds, flags, _ = socket.recv_fds(on, 64, 1, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    with contextlib.ExitStack() as unless_taken:
        for fd in fds:
            unless_taken.callback(os.close, fd)
        if not packet and not fds:
            return None
        if len(packet) != _FORMAT.size or flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC) or len(fds) > 1:
            raise BadMessage(f"{len(packet)} bytes with {len(fds)} descriptors")
        kind, port, address, number = _FORMAT.unpack(packet)
        try:
            message = Message(Kind(kind), port, socket.inet_ntoa(address), number)
            passed = socket.socket(fileno=fds[0]) if fds else None
        except (ValueError, OSError) as error:
            raise BadMessage(str(error)) from error
        unless_taken.pop_all()
        return message, passed


def is_tcp(passed: socket.socket) -> bool:
    """Whether this is an IPv4 TCP socket, all that may come out of a cell."""
    return (
        passed.family == socket.AF_INET
        and passed.type == socket.SOCK_STREAM
        and passed.proto == socket.IPPROTO_TCP
    )
