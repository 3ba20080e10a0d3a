"""What the owner of a running host says to it: a Unix socket in its home, for this user alone, a line of JSON each way."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import structlog
import trio

from edgellm.errors import EdgeError, NetworkError, UsageError

log = structlog.get_logger(__name__)

SOCKET = "host.sock"
"""In `Paths.runtime`; one host has one home."""
MAX_LINE_BYTES = 256 * 1024
MAX_CALLERS = 8
ANSWER_TIMEOUT_S = 5.0
_ROOT = 0
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: Linux's struct ucred


class Status(msgspec.Struct, frozen=True, tag="status"):
    """Asks how the host is."""


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    within_s: float | None = None
    """What running leases get; None: the host's grace."""
    for_s: float | None = None
    """After which it resumes by itself; None: when it is told to."""


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Ends a pause."""


Order = Status | Pause | Resume


class LeaseLine(msgspec.Struct, frozen=True):
    model: str
    requester: str
    first_layer: int
    end_layer: int
    memory_bytes: int
    """On all its devices."""
    granted_at: float


class HostStatus(msgspec.Struct, frozen=True, tag="host"):
    """How a running host is. Times are in Unix seconds."""

    name: str
    peer: str
    pid: int
    state: str
    """"lending", "paused" or "ending"."""
    models: tuple[str, ...]
    leases: tuple[LeaseLine, ...]
    max_leases: int
    lent_memory_bytes: int
    free_memory_bytes: int
    leases_end_at: float | None = None
    """When running leases are ended; None: they are not."""
    resumes_at: float | None = None
    """When a pause ends by itself."""
    until: float | None = None
    """When it stops to lend, as its owner said at its start."""


class _Failed(msgspec.Struct, frozen=True, tag="failed"):
    message: str
    remedy: str = ""


_ORDERS = msgspec.json.Decoder(Order)
_ANSWERS: msgspec.json.Decoder[HostStatus | _Failed] = msgspec.json.Decoder(HostStatus | _Failed)


@asynccontextmanager
async def control_socket(directory: Path, obey: Callable[[Order], HostStatus]) -> AsyncIterator[None]:
    """Takes orders in `directory` while the context lasts; `obey` does them, and raises EdgeErrors for what cannot be.

    The caller is the only host of the directory. Where no socket can be made the host runs without.
    """
    path = directory / SOCKET
    with trio.socket.socket(socket.AF_UNIX) as listening:
        try:
            path.unlink(missing_ok=True)
            await listening.bind(str(path))
            path.chmod(0o600)
            listening.listen(MAX_CALLERS)
        except OSError as error:
            log.warning(
                "this host cannot be paused: its socket cannot be made", path=str(path), error=str(error)
            )
            yield
            return
        callers = trio.CapacityLimiter(MAX_CALLERS)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_accept, listening, callers, obey)
                yield
                nursery.cancel_scope.cancel()
        finally:
            with suppress(OSError):
                path.unlink()


async def _accept(
    listening: trio.socket.SocketType, callers: trio.CapacityLimiter, obey: Callable[[Order], HostStatus]
) -> None:
    async def serve(connection: trio.socket.SocketType) -> None:
        async with callers:
            stream = trio.SocketStream(connection)
            with trio.move_on_after(ANSWER_TIMEOUT_S), suppress(trio.BrokenResourceError):
                await _answer(stream, connection, obey)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        while True:
            try:
                connection, _ = await listening.accept()
            except OSError as error:
                # Out of descriptors, for example: those that are open are served meanwhile.
                log.warning("the host's socket", error=str(error))
                await trio.sleep(1)
                continue
            nursery.start_soon(serve, connection)


async def _answer(
    stream: trio.SocketStream, connection: trio.socket.SocketType, obey: Callable[[Order], HostStatus]
) -> None:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid = _CREDENTIALS.unpack(credentials)[1]
    if uid not in (os.getuid(), _ROOT):
        log.warning("another user tried to order this host about", uid=uid)
        return
    line = bytearray()
    while not line.endswith(b"\n"):
        chunk = await stream.receive_some(4096)
        if not chunk or len(line) + len(chunk) > 4096:
            return
        line += chunk
    answer: HostStatus | _Failed
    try:
        answer = obey(_ORDERS.decode(line))
    except msgspec.DecodeError:
        answer = _Failed("this is no order for a host", "use the same version of edgellm for both")
    except EdgeError as error:
        answer = _Failed(str(error), error.remedy)
    await stream.send_all(msgspec.json.encode(answer) + b"\n")


def tell(path: Path, order: Order) -> HostStatus:
    """Gives an order to the host whose socket is `path`; how it is then.

    Raises NetworkError where no host answers, UsageError where it cannot obey.
    """
    line = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as calling:
            calling.settimeout(ANSWER_TIMEOUT_S)
            calling.connect(str(path))
            calling.sendall(msgspec.json.encode(order) + b"\n")
            while not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
                chunk = calling.recv(65536)
                if not chunk:
                    break
                line += chunk
        answer = _ANSWERS.decode(line)
    except OSError as error:
        raise NetworkError(f"the host at {path} does not answer: {error}") from error
    except msgspec.DecodeError as error:
        raise NetworkError(f"the host at {path} answered something else") from error
    if isinstance(answer, _Failed):
        raise UsageError(answer.message, remedy=answer.remedy)
    return answer


def sockets(runtime: Path, cache: Path) -> list[Path]:
    """Where hosts of this home may listen: its own, and those that its console started."""
    started = (cache / "hosts").glob(f"*/run/{SOCKET}")
    return [path for path in (runtime / SOCKET, *sorted(started)) if path.is_socket()]


def running(paths: list[Path]) -> list[tuple[Path, HostStatus]]:
    """The hosts among them that answer."""
    found = []
    for path in paths:
        with suppress(NetworkError):
            found.append((path, tell(path, Status())))
    return found


def the_one(hosts: list[tuple[Path, HostStatus]], name: str | None) -> Path:
    """The host that is called `name`, or whose peer id ends with it; without a name the only one. Raises UsageError."""
    named = [
        (path, status)
        for path, status in hosts
        if name is None or status.name == name or (len(name) >= 6 and status.peer.endswith(name))
    ]
    if len(named) == 1:
        return named[0][0]
    known = ", ".join(status.name for _, status in hosts)
    if not hosts:
        raise UsageError(
            "no host of this user runs here",
            remedy="start one: edgellm host --model MODEL; one with a home of its own is found with EDGELLM_HOME set",
        )
    if not named:
        raise UsageError(f"no host here is called {name!r}", remedy=f"there are: {known}")
    raise UsageError(f"{len(named)} hosts run here", remedy=f"say which: --name, one of {known}")
