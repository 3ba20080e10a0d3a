"""Non-blocking sockets under trio, as the carrier needs them: raw, so that a buffer is copied only by the kernel.

Every call passes MSG_DONTWAIT: the cell holds duplicates of its sockets and could make them blocking.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from typing import TypeVar

import trio

_RESET_ON_CLOSE, _END_ON_CLOSE = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)
# A peer that vanished without a word: first probe after 10 s of silence, given up 20 s after that.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))
_USER_TIMEOUT_MS = 30_000

T = TypeVar("T")
Parts = list[bytes | memoryview]


def prepare_tcp(tcp: socket.socket) -> socket.socket:
    """Non-blocking, no Nagle, dead peers noticed within about 30 s. Returns the same socket.

    If this process dies, the other end sees a reset and no orderly end.
    """
    tcp.setblocking(False)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        tcp.setsockopt(socket.IPPROTO_TCP, option, value)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
    return tcp


def close_socket(closing: socket.socket, *, reset: bool = False) -> None:
    """Close, with a TCP reset in place of an orderly end if `reset`; wakes tasks that wait for it."""
    if closing.fileno() >= 0:
        trio.lowlevel.notify_closing(closing)
        end_socket(closing, reset=reset)


def end_socket(closing: socket.socket, *, reset: bool) -> None:
    """`close_socket` for a socket that no trio task waits for; from any thread."""
    if closing.family != socket.AF_UNIX:
        linger = _RESET_ON_CLOSE if reset else _END_ON_CLOSE
        closing.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    closing.close()


async def receive_into(source: socket.socket, buffer: memoryview) -> int:
    """Number of bytes read, 0 at the end."""
    while True:
        try:
            return source.recv_into(buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(source)


async def receive_exactly(source: socket.socket, buffer: memoryview) -> bool:
    """Fill `buffer`; False if the source ended first."""
    while buffer:
        count = await receive_into(source, buffer)
        if count == 0:
            return False
        buffer = buffer[count:]
    return True


async def send_all(target: socket.socket, *parts: bytes | memoryview) -> None:
    """Send all parts, in one system call where the kernel takes them."""
    rest = send_some(target, list(parts))
    while rest:
        await trio.lowlevel.wait_writable(target)
        rest = send_some(target, rest)


def send_some(target: socket.socket, parts: Parts) -> Parts:
    """Send what the kernel takes now; the parts that are left. Raises `OSError`."""
    try:
        count = target.sendmsg(parts, [], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except BlockingIOError:
        return parts
    for index, part in enumerate(parts):
        if count < len(part):
            return [memoryview(part)[count:], *parts[index + 1 :]]
        count -= len(part)
    return []


async def when_ready(tls: ssl.SSLSocket, operation: Callable[[], T]) -> T:
    """Repeat a TLS operation until it needs no more input or output. Raises `ssl.SSLError`, `OSError`."""
    while True:
        try:
            return operation()
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(tls)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(tls)
