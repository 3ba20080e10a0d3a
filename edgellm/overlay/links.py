"""Authenticated connections between the carriers of one cluster.

A link is one TCP connection for one connection of the engine. A TLS 1.3 handshake with the members' ephemeral
certificates on both sides opens it; then one message each way inside TLS:

    dialler  -> acceptor   port (2 bytes), key forward (16), key backward (16)
    acceptor -> dialler    one byte: CONNECTED or REFUSED

and after CONNECTED both leave TLS and go on with records under these keys (`edgellm.overlay.records`). Whose
link it is follows from the certificate; nothing that the other side says enters into it.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from edgellm.overlay.identity import MemberIdentity
from edgellm.overlay.records import KEY_BYTES, LinkKeys
from edgellm.overlay.sockets import close_socket, prepare_tcp, when_ready

DIAL_TIMEOUT_S = 2.0
_HANDSHAKE_TIMEOUT_S = 5.0
_OPEN_TIMEOUT_S = 15.0
# How long a member that could not be dialled is not tried again.
_UNREACHABLE_S = 20.0
_IDLE_LINKS = 2
_IDLE_S = 30.0
_REFILL_DELAY_S = 0.01
# The acceptor keeps an idle link longer than the dialler offers it.
_ACCEPT_IDLE_S = 2 * _IDLE_S

_OPEN = struct.Struct(f"!H{KEY_BYTES}s{KEY_BYTES}s")
_CONNECTED, _REFUSED = b"\x01", b"\x02"


class Unreachable(Exception):
    """No endpoint of the member answers with the member's certificate."""


class Refused(Exception):
    """The member was reached; nothing listens on that port of its cell."""


@dataclass
class LinkMember:
    """Another member: its overlay address, certificate and direct endpoints (host, port)."""

    address: str
    certificate_der: bytes
    endpoints: tuple[tuple[str, int], ...]
    unreachable_until: float = 0.0
    idle: deque[tuple[float, ssl.SSLSocket]] = field(default_factory=deque)


@dataclass(frozen=True)
class Link:
    """An open link: the raw TCP socket and the keys as this side uses them."""

    tcp: socket.socket
    keys: LinkKeys


class Dialler:
    """Opens links to other members."""

    def __init__(self, identity: MemberIdentity, nursery: trio.Nursery) -> None:
        self._identity = identity
        self._nursery = nursery
        self._contexts: dict[str, ssl.SSLContext] = {}

    async def open(self, member: LinkMember, port: int) -> Link:
        """A link to `port` of that member's cell. Raises `Unreachable`, `Refused`."""
        while (idle := self._take_idle(member)) is not None:
            try:
                link = await _ask_to_open(idle, port)
            except (OSError, trio.TooSlowError):
                continue  # It died while idle; nothing of this connection was on it yet.
            self._nursery.start_soon(self._refill, member)
            return link
        tls = await self._dial(member)
        try:
            link = await _ask_to_open(tls, port)
        except (OSError, trio.TooSlowError) as error:
            raise Unreachable(f"{member.address}: {error}") from error
        self._nursery.start_soon(self._refill, member)
        return link

    def close_idle(self, member: LinkMember) -> None:
        """Close the idle links that are too old to offer."""
        while member.idle and trio.current_time() - member.idle[0][0] > _IDLE_S:
            close_socket(member.idle.popleft()[1])

    def close_all(self, member: LinkMember) -> None:
        """Close what is idle, and dial it no more: it is no member now."""
        member.unreachable_until = math.inf
        while member.idle:
            close_socket(member.idle.popleft()[1])

    def _take_idle(self, member: LinkMember) -> ssl.SSLSocket | None:
        self.close_idle(member)
        return member.idle.popleft()[1] if member.idle else None

    async def _refill(self, member: LinkMember) -> None:
        # Not at once: a handshake costs more than the first bytes of the connection that was just opened.
        await trio.sleep(_REFILL_DELAY_S)
        with contextlib.suppress(Unreachable):
            while len(member.idle) < _IDLE_LINKS:
                tls = await self._dial(member)
                member.idle.append((trio.current_time(), tls))

    def _context_for(self, member: LinkMember) -> ssl.SSLContext:
        if member.address not in self._contexts:
            context = _context(ssl.PROTOCOL_TLS_CLIENT, self._identity, [member.certificate_der])
            self._contexts[member.address] = context
        return self._contexts[member.address]

    async def _dial(self, member: LinkMember) -> ssl.SSLSocket:
        """The first endpoint that completes a handshake as that member; all are tried at once."""
        if trio.current_time() < member.unreachable_until or not member.endpoints:
            raise Unreachable(member.address)
        context = self._context_for(member)
        winner: ssl.SSLSocket | None = None

        async def attempt(endpoint: tuple[str, int]) -> None:
            nonlocal winner
            with contextlib.suppress(OSError):
                tls = await _dial_endpoint(endpoint, context, member.certificate_der)
                if winner is None:
                    winner = tls
                    nursery.cancel_scope.cancel()
                else:
                    close_socket(tls)

        with trio.move_on_after(DIAL_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for endpoint in member.endpoints:
                    nursery.start_soon(attempt, endpoint)
        if winner is None:
            member.unreachable_until = trio.current_time() + _UNREACHABLE_S
            raise Unreachable(member.address)
        return winner


async def accept_link(
    tcp: socket.socket,
    context: ssl.SSLContext,
    members: dict[bytes, LinkMember],
    connect: Callable[[int], Awaitable[socket.socket | None]],
    handshakes: trio.CapacityLimiter,
) -> tuple[LinkMember, Link, socket.socket] | None:
    """The other side of `Dialler.open`: whose link, the link, and the socket that `connect(port)` gave.

    `handshakes` bounds how many strangers are listened to at once. None where the link came to nothing; `tcp` is
    closed then.
    """
    tls = context.wrap_socket(prepare_tcp(tcp), server_side=True, do_handshake_on_connect=False)
    cell: socket.socket | None = None
    try:
        with trio.fail_after(_HANDSHAKE_TIMEOUT_S):
            # Who says nothing keeps nobody else from being listened to.
            await trio.lowlevel.wait_readable(tls)
            async with handshakes:
                await when_ready(tls, tls.do_handshake)
        member = members.get(tls.getpeercert(binary_form=True) or b"")
        if member is None:
            raise ConnectionRefusedError("not a member's certificate")
        with trio.fail_after(_ACCEPT_IDLE_S):
            asked = await when_ready(tls, lambda: tls.recv(_OPEN.size))
        port, forward, backward = _OPEN.unpack(asked)
        cell = await connect(port)
        answer = _CONNECTED if cell is not None else _REFUSED
        await when_ready(tls, lambda: tls.send(answer))
        if cell is not None:
            link = Link(_leave_tls(tls), LinkKeys(forward, backward).reversed())
            joined, cell = cell, None
            return member, link, joined
    except (OSError, struct.error, trio.TooSlowError, trio.ClosedResourceError):
        pass  # A scan, another protocol, a stranger, an idle link that was not needed: none is an event.
    finally:
        if cell is not None:
            close_socket(cell, reset=True)
        close_socket(tls)
    return None


def server_context(identity: MemberIdentity, certificates_der: list[bytes]) -> ssl.SSLContext:
    """For `accept_link`: admits these certificates, of members, and no others."""
    return _context(ssl.PROTOCOL_TLS_SERVER, identity, certificates_der)


def _context(protocol: int, identity: MemberIdentity, admitted: list[bytes]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    for certificate_der in admitted:
        # One by one: of what a member gave that is no certificate, nobody but that member has the damage.
        with contextlib.suppress(ssl.SSLError, ValueError):
            context.load_verify_locations(cadata=certificate_der)
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    # The ssl module reads a private key from a path only; this one is memory.
    with os.fdopen(os.memfd_create("identity"), "wb") as file:
        file.write(identity.private_key_pem + identity.certificate_pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


async def _dial_endpoint(
    endpoint: tuple[str, int], context: ssl.SSLContext, certificate_der: bytes
) -> ssl.SSLSocket:
    stream = await trio.open_tcp_stream(*endpoint)
    tcp = socket.socket(fileno=stream.socket.detach())
    tls = context.wrap_socket(prepare_tcp(tcp), do_handshake_on_connect=False)
    try:
        await when_ready(tls, tls.do_handshake)
        if tls.getpeercert(binary_form=True) != certificate_der:
            raise ConnectionRefusedError("another member's certificate")
    except BaseException:
        close_socket(tls)
        raise
    return tls


async def _ask_to_open(tls: ssl.SSLSocket, port: int) -> Link:
    """Closes `tls` unless it becomes the link. Raises `Refused`, `OSError`, `trio.TooSlowError`."""
    keys = LinkKeys.make()
    try:
        with trio.fail_after(_OPEN_TIMEOUT_S):
            message = _OPEN.pack(port, keys.forward, keys.backward)
            await when_ready(tls, lambda: tls.send(message))
            answer = await when_ready(tls, lambda: tls.recv(1))
        if answer == _REFUSED:
            raise Refused(f"port {port}")
        if answer != _CONNECTED:
            raise ConnectionResetError("the link ended before it was open")
        return Link(_leave_tls(tls), keys)
    finally:
        close_socket(tls)


def _leave_tls(tls: ssl.SSLSocket) -> socket.socket:
    """The TCP socket under `tls`, at a record's boundary: OpenSSL reads no further than the record it returns."""
    return socket.socket(fileno=tls.detach())
