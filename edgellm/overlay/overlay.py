"""Starts and owns the carrier of one cell. What the node uses of this package."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from edgellm.errors import CellError, NetworkError, unwrapped
from edgellm.overlay import handover
from edgellm.overlay.address import check_members
from edgellm.overlay.carrier import Admission, CarrierSettings, MemberSettings
from edgellm.overlay.handover import BadMessage, Kind, Message
from edgellm.overlay.identity import MemberIdentity, make_member_identity
from edgellm.overlay.streams import join_stream
from edgellm.p2p.network import Stream

__all__ = [
    "MemberIdentity",
    "OpenStream",
    "Overlay",
    "OverlayMember",
    "OverlaySpec",
    "bind_listener",
    "make_member_identity",
    "open_overlay",
]

_START_TIMEOUT_S = 20.0
_OPEN_STREAM_TIMEOUT_S = 20.0
_ADMIT_TIMEOUT_S = 5.0
_MAX_STREAMS = 512
_BACKLOG = 1024

OpenStream = Callable[[str, int], Awaitable[Stream]]


@dataclass(frozen=True)
class OverlayMember:
    """One member of the plan; `endpoints` are (host, port) where its carrier may be dialled, maybe none."""

    address: str
    certificate_der: bytes
    endpoints: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class OverlaySpec:
    """`members` are the members of the plan; whether this one (`own_address`) is among them does not matter."""

    own_address: str
    members: tuple[OverlayMember, ...]


@dataclass(frozen=True)
class MemberTraffic:
    """Bytes and connections with one member by one way, "tls" or "stream"."""

    sent_bytes: int
    received_bytes: int
    connections: int


class Overlay:
    """A running carrier. Made by `open_overlay`."""

    def __init__(
        self,
        own_address: str,
        channel: socket.socket,
        orders: trio.lowlevel.FdStream,
        nursery: trio.Nursery,
    ) -> None:
        self._own_address = own_address
        self._channel = channel
        self._orders = orders
        self._ordering = trio.Lock()
        self._admissions = 0
        self._admitted = trio.Condition()
        self._admitted_number = 0
        self._nursery = nursery
        self._streams = trio.CapacityLimiter(_MAX_STREAMS)
        self._stats: dict[str, dict[str, MemberTraffic]] = {}
        self._dead = trio.Event()

    async def accept_stream(self, stream: Stream, source_address: str, port: int) -> None:
        """Serve a libp2p stream on which member `source_address` wants `port` of this cell, until it ends.

        The node has checked that the stream's peer is that member. Closes the stream.
        """
        if self._dead.is_set() or self._streams.available_tokens < 1:
            await stream.reset()
            return
        async with self._streams:
            ours, carriers = socket.socketpair()
            try:
                with carriers:
                    await self._send(Message(Kind.INBOUND, port, source_address), carriers)
            except OSError:
                ours.close()
                await stream.reset()
                return
            await join_stream(stream, ours)

    async def admit(self, members: tuple[OverlayMember, ...]) -> None:
        """From now on these are the members. Connections of those who stay go on; those of the others are reset.

        Raises `CellError` where the carrier does not answer, `ProtocolViolation` for addresses that are not of one cluster.
        """
        check_members((self._own_address, *_others(members, self._own_address)))
        async with self._ordering:
            self._admissions += 1
            number = self._admissions
            order = Admission(number, _settings(members, self._own_address))
            try:
                with trio.fail_after(_ADMIT_TIMEOUT_S):
                    await self._orders.send_all(msgspec.json.encode(order) + b"\n")
                    async with self._admitted:
                        while self._admitted_number < number and not self._dead.is_set():
                            await self._admitted.wait()
                if self._admitted_number < number:
                    raise CellError("the overlay's carrier has ended")
            except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise CellError("the overlay's carrier takes no new members") from error

    def stats(self) -> dict[str, dict[str, MemberTraffic]]:
        """Traffic by member address and way, at most about a second old."""
        return dict(self._stats)

    def transferred_bytes(self) -> int:
        """All traffic so far, both ways, at most about a second old."""
        ways = (way for member in self._stats.values() for way in member.values())
        return sum(way.sent_bytes + way.received_bytes for way in ways)

    async def wait_dead(self) -> None:
        """Return when the carrier has ended: the cell has lost its network and must go."""
        await self._dead.wait()

    async def _send(self, message: Message, passed: socket.socket) -> None:
        while True:
            try:
                handover.send(self._channel, message, passed, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._channel)

    async def _serve_carrier(self, open_stream: OpenStream) -> None:
        """Open a libp2p stream for each connection that the carrier cannot dial directly."""
        while True:
            try:
                received = handover.receive(self._channel)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._channel)
                continue
            except (OSError, BadMessage):
                return
            if received is None:
                return
            message, carrier = received
            if carrier is None:
                continue
            if self._streams.available_tokens < 1:
                carrier.close()
            else:
                self._nursery.start_soon(self._carry, open_stream, message, carrier)

    async def _carry(self, open_stream: OpenStream, message: Message, carrier: socket.socket) -> None:
        async with self._streams:
            try:
                with trio.fail_after(_OPEN_STREAM_TIMEOUT_S):
                    stream = await open_stream(message.address, message.port)
            except (NetworkError, OSError, trio.TooSlowError, trio.BrokenResourceError):
                carrier.close()  # The cell's program sees its connection reset.
                return
            await join_stream(stream, carrier)

    async def _read_events(self, stdout: trio.lowlevel.FdStream, ready: trio.Event) -> None:
        pending = b""
        try:
            async with stdout:
                while received := await stdout.receive_some(65536):
                    *lines, pending = (pending + received).split(b"\n")
                    for line in lines:
                        event = json.loads(line)
                        if event["event"] == "ready":
                            ready.set()
                        elif event["event"] == "admitted":
                            self._admitted_number = event["number"]
                            await self._tell_admitted()
                        else:
                            self._stats = msgspec.convert(
                                event["members"], dict[str, dict[str, MemberTraffic]]
                            )
        finally:
            self._dead.set()
            ready.set()
            with trio.CancelScope(shield=True):
                await self._tell_admitted()

    async def _tell_admitted(self) -> None:
        async with self._admitted:
            self._admitted.notify_all()


def _others(members: tuple[OverlayMember, ...], own_address: str) -> list[str]:
    return [member.address for member in members if member.address != own_address]


def _settings(members: tuple[OverlayMember, ...], own_address: str) -> tuple[MemberSettings, ...]:
    return tuple(
        MemberSettings(member.address, member.certificate_der, member.endpoints)
        for member in members
        if member.address != own_address
    )


def bind_listener(host: str, port: int = 0) -> socket.socket:
    """A TCP listener for the carrier; its port goes into the plan. Raises `NetworkError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise NetworkError(
            f"Cannot listen on {host} port {port} for the overlay: {error.strerror}",
            remedy="choose another address or port with --listen",
        ) from error


@asynccontextmanager
async def open_overlay(
    spec: OverlaySpec,
    runtime_directory: Path,
    listener: socket.socket,
    identity: MemberIdentity,
    open_stream: OpenStream,
) -> AsyncIterator[Overlay]:
    """Run a carrier for the cell that will see `runtime_directory`; `overlay.sock` is there when this yields.

    Takes over `listener`. `open_stream(member_address, port)` opens a libp2p stream to that member for that port.
    Call from the main thread: the carrier dies with the thread that started it. Raises `CellError` if it cannot
    start, `ProtocolViolation` if the members' addresses are not those of one cluster.
    """
    check_members((spec.own_address, *_others(spec.members, spec.own_address)))
    ours, carriers = handover.channel_pair()
    ours.setblocking(False)
    with contextlib.ExitStack() as inherited:
        cell_listener = inherited.enter_context(_listen_for_cell(runtime_directory / "overlay.sock"))
        inherited.enter_context(listener)
        inherited.enter_context(carriers)
        settings = CarrierSettings(
            certificate_der=identity.certificate_der,
            private_key_pem=identity.private_key_pem,
            members=_settings(spec.members, spec.own_address),
            listener_fd=listener.fileno(),
            cell_fd=cell_listener.fileno(),
            node_fd=carriers.fileno(),
        )
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "edgellm.overlay.carrier"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(settings.listener_fd, settings.cell_fd, settings.node_fd),
        )
    assert process.stdin is not None
    assert process.stdout is not None
    stdout = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
    process.stdout.close()
    stdin = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
    process.stdin.close()
    try:
        with unwrapped():
            async with stdin, trio.open_nursery() as nursery:
                overlay = Overlay(spec.own_address, ours, stdin, nursery)
                ready = trio.Event()
                nursery.start_soon(overlay._read_events, stdout, ready)
                nursery.start_soon(overlay._serve_carrier, open_stream)
                with contextlib.suppress(trio.BrokenResourceError):
                    await stdin.send_all(msgspec.json.encode(settings) + b"\n")
                with trio.move_on_after(_START_TIMEOUT_S):
                    await ready.wait()
                if not ready.is_set() or overlay._dead.is_set():
                    raise CellError(
                        f"The overlay's carrier did not start (exit status {process.poll()})",
                        remedy="run `edgellm doctor`",
                    )
                yield overlay
                nursery.cancel_scope.cancel()
    finally:
        process.kill()
        process.wait()
        ours.close()
        (runtime_directory / "overlay.sock").unlink(missing_ok=True)


def _listen_for_cell(path: Path) -> socket.socket:
    listening = handover.channel()
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise CellError(f"Cannot make the socket {path}: {error.strerror}") from error
    listening.listen(8)
    return listening
