"""The carrier of one cell: `python -m edgellm.overlay.carrier`, its settings as one line of JSON on stdin.

It joins the cell's connections with the other members' carriers, over sealed links where their endpoints can
be dialled and over libp2p streams (through the node) where not. Each further line on stdin is an `Admission`: who is a
member from now on; the connections of those who are not any more are reset. On stdout it reports, one JSON object a line:

    {"event": "ready"}
    {"event": "admitted", "number": NUMBER}
    {"event": "stats", "members": {ADDRESS: {"tls" | "stream": {"sent_bytes", "received_bytes", "connections"}}}}

It ends with the node: by its death signal, and when the node closes its channel.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field

import msgspec
import trio

from edgellm.cells.fences import die_with_parent
from edgellm.overlay import handover
from edgellm.overlay.cell_side import CellSide
from edgellm.overlay.framed import FramedConnection
from edgellm.overlay.handover import BadMessage, Kind, Message
from edgellm.overlay.identity import MemberIdentity
from edgellm.overlay.links import Dialler, LinkMember, Refused, Unreachable, accept_link, server_context
from edgellm.overlay.pump import Traffic, open_pumps
from edgellm.overlay.sockets import close_socket

MAX_CONNECTIONS = 2048
_MAX_OPENING = 64
_MAX_STRANGERS = 256
"""Connections from one address that have not shown yet whose they are."""
_REPORT_S = 1.0
_PAUSE_S = 0.1
_STDIN, _STDOUT = 0, 1


class MemberSettings(msgspec.Struct, frozen=True):
    """Another member of the cluster."""

    address: str
    certificate_der: bytes
    endpoints: tuple[tuple[str, int], ...]


class CarrierSettings(msgspec.Struct, frozen=True):
    """What the node tells its carrier; the `*_fd` are inherited sockets."""

    certificate_der: bytes
    private_key_pem: bytes
    members: tuple[MemberSettings, ...]
    listener_fd: int
    cell_fd: int
    node_fd: int


class Admission(msgspec.Struct, frozen=True):
    """The members from now on; `number` is told when nobody else is let in any more."""

    number: int
    members: tuple[MemberSettings, ...]


@dataclass
class _Member:
    settings: MemberSettings
    link: LinkMember
    by_way: dict[str, Traffic] = field(default_factory=lambda: {"tls": Traffic(), "stream": Traffic()})
    carried: set[trio.CancelScope] = field(default_factory=set)

    @contextlib.contextmanager
    def carrying(self) -> Iterator[None]:
        """A connection of this member: it ends when the member is one no longer."""
        scope = trio.CancelScope()
        self.carried.add(scope)
        try:
            with scope:
                yield
        finally:
            self.carried.discard(scope)


def _member(settings: MemberSettings) -> _Member:
    return _Member(settings, LinkMember(settings.address, settings.certificate_der, settings.endpoints))


class Carrier:
    """Run it with `run`; it ends when the node's channel does."""

    def __init__(self, settings: CarrierSettings) -> None:
        self._identity = MemberIdentity(settings.certificate_der, settings.private_key_pem)
        self._members = {member.address: _member(member) for member in settings.members}
        self._admitted = self._admission()
        self._listener = socket.socket(fileno=settings.listener_fd)
        self._cell = CellSide(socket.socket(fileno=settings.cell_fd))
        self._node = socket.socket(fileno=settings.node_fd)
        self._connections = trio.CapacityLimiter(MAX_CONNECTIONS)

    async def run(self, admissions: AsyncIterator[bytes]) -> None:
        """Serve until the node closes its channel."""
        self._listener.setblocking(False)
        self._node.setblocking(False)
        async with open_pumps() as self._pumps, trio.open_nursery() as nursery:
            self._dialler = Dialler(self._identity, nursery)
            nursery.start_soon(self._admit_all, admissions)
            await nursery.start(self._own_connections)
            nursery.start_soon(self._cell.serve, self._outbound)
            nursery.start_soon(self._accept_links)
            nursery.start_soon(self._report)
            await self._serve_node()
            nursery.cancel_scope.cancel()

    def _admission(self) -> tuple[ssl.SSLContext, dict[bytes, LinkMember]]:
        """What lets links of the present members in, and nobody else's."""
        by_certificate = {member.link.certificate_der: member.link for member in self._members.values()}
        return server_context(self._identity, list(by_certificate)), by_certificate

    async def _admit_all(self, admissions: AsyncIterator[bytes]) -> None:
        async for line in admissions:
            admission = msgspec.json.decode(line, type=Admission)
            before = self._members
            self._members = {
                settings.address: kept
                if (kept := before.get(settings.address)) is not None and kept.settings == settings
                else _member(settings)
                for settings in admission.members
            }
            self._admitted = self._admission()
            for member in before.values():
                if self._members.get(member.link.address) is not member:
                    self._dialler.close_all(member.link)
                    for scope in tuple(member.carried):
                        scope.cancel()
            _print({"event": "admitted", "number": admission.number})

    async def _own_connections(self, task_status: trio.TaskStatus[None]) -> None:
        """The nursery of all connections, a new one for each cell: they end when their cell does."""
        async with trio.open_nursery() as self._carrying:
            task_status.started()
            await self._cell.wait_gone()
            self._carrying.cancel_scope.cancel()
        while True:
            async with trio.open_nursery() as self._carrying:
                await self._cell.wait_gone()
                self._carrying.cancel_scope.cancel()

    async def _outbound(self, cell: socket.socket, address: str, port: int) -> None:
        """A connection that the cell makes."""
        member = self._members.get(address)
        if member is None or self._connections.available_tokens < 1:
            close_socket(cell, reset=True)
        else:
            self._carrying.start_soon(self._carry_out, cell, member, port)

    async def _carry_out(self, cell: socket.socket, member: _Member, port: int) -> None:
        with _resetting(cell), member.carrying():
            async with self._connections:
                try:
                    link = await self._dialler.open(member.link, port)
                except Refused:
                    return
                except Unreachable:
                    await self._carry_out_by_stream(cell, member, port)
                else:
                    traffic = member.by_way["tls"]
                    traffic.connections += 1
                    await self._pumps.join(cell, link.tcp, link.keys, traffic)

    async def _carry_out_by_stream(self, cell: socket.socket, member: _Member, port: int) -> None:
        ours, nodes = socket.socketpair()
        connection = FramedConnection(ours)
        try:
            with nodes:
                await self._tell_node(Message(Kind.OUTBOUND, port, member.link.address), nodes)
            if await connection.wait_opened():
                traffic = member.by_way["stream"]
                traffic.connections += 1
                await connection.pump(cell, traffic)
        finally:
            connection.close()

    async def _accept_links(self) -> None:
        opening = trio.CapacityLimiter(_MAX_OPENING)
        strangers = Counter[str]()

        async def accept(tcp: socket.socket, source: str) -> None:
            async with self._connections:
                context, by_certificate = self._admitted
                strangers[source] += 1
                try:
                    accepted = await accept_link(tcp, context, by_certificate, self._cell.connect, opening)
                finally:
                    strangers[source] -= 1
                    if not strangers[source]:
                        del strangers[source]
                if accepted is None:
                    return
                linked, link, cell = accepted
                member = self._members.get(linked.address)
                if member is None or member.link is not linked:
                    # It was one when the link began.
                    close_socket(cell, reset=True)
                    close_socket(link.tcp, reset=True)
                    return
                traffic = member.by_way["tls"]
                traffic.connections += 1
                with member.carrying():
                    await self._pumps.join(cell, link.tcp, link.keys, traffic)

        while True:
            await trio.lowlevel.wait_readable(self._listener)
            try:
                tcp, (source, *_) = self._listener.accept()
            except OSError:
                await trio.sleep(_PAUSE_S)
                continue
            if self._connections.available_tokens < 1 or strangers[source] >= _MAX_STRANGERS:
                close_socket(tcp, reset=True)
            else:
                self._carrying.start_soon(accept, tcp, source)

    async def _serve_node(self) -> None:
        while True:
            try:
                received = handover.receive(self._node)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._node)
                continue
            except (OSError, BadMessage):
                return
            if received is None:
                return
            message, stream = received
            if stream is not None:
                self._carrying.start_soon(self._carry_in, FramedConnection(stream), message)

    async def _carry_in(self, connection: FramedConnection, message: Message) -> None:
        """A libp2p stream from another member."""
        member = self._members.get(message.address)
        try:
            async with self._connections:
                cell = await self._cell.connect(message.port) if member is not None else None
                if cell is None or member is None:
                    await connection.answer(opened=False)
                    return
                with _resetting(cell), member.carrying():
                    await connection.answer(opened=True)
                    traffic = member.by_way["stream"]
                    traffic.connections += 1
                    await connection.pump(cell, traffic)
        except OSError:
            pass  # The node closed the stream meanwhile.
        finally:
            connection.close()

    async def _tell_node(self, message: Message, passed: socket.socket) -> None:
        while True:
            try:
                handover.send(self._node, message, passed, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._node)

    async def _report(self) -> None:
        _print({"event": "ready"})
        reported = None
        while True:
            for member in self._members.values():
                self._dialler.close_idle(member.link)
            stats = {
                address: {way: asdict(traffic) for way, traffic in member.by_way.items()}
                for address, member in self._members.items()
            }
            if stats != reported:
                _print({"event": "stats", "members": stats})
                reported = stats
            await trio.sleep(_REPORT_S)


@contextlib.contextmanager
def _resetting(cell: socket.socket) -> Iterator[None]:
    """Resets `cell` at the end unless it has been closed in order by then."""
    try:
        yield
    finally:
        close_socket(cell, reset=True)


def main() -> None:
    """Read the settings, run, end with the node."""
    die_with_parent()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A terminal's Ctrl-C reaches this process too, but the node decides when the cell loses its network.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trio.run(_main)


async def _main() -> None:
    lines = _lines(trio.lowlevel.FdStream(_STDIN))
    settings = msgspec.json.decode(await anext(lines), type=CarrierSettings)
    await Carrier(settings).run(lines)


async def _lines(stream: trio.lowlevel.FdStream) -> AsyncIterator[bytes]:
    pending = b""
    while received := await stream.receive_some(65536):
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            yield line


def _print(event: dict[str, object]) -> None:
    # A node that has stopped reading is about to end this process. Not by `sys.stdout`, which would try again at the end.
    with contextlib.suppress(BrokenPipeError):
        os.write(_STDOUT, json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    main()
