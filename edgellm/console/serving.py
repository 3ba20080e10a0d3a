"""The app on a port or on a Unix socket."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from hypercorn.config import Config
from hypercorn.trio import serve as serve_asgi
from starlette.types import ASGIApp

from edgellm.console.guard import LOOPBACK
from edgellm.errors import UsageError

KEPT_S = 75.0
"""How long a connection stays between two requests."""
UNREAD_S = 20.0
"""How long a client may not read what is sent to it. The server itself waits without a bound."""


@contextmanager
def open_port(address: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens; port 0 takes a free one. Raises UsageError where it cannot be used."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Those that are accepted have it, too.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNREAD_S * 1000))
        try:
            listening.bind((address, port))
            listening.listen()
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            is_elsewhere = isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL
            raise UsageError(
                f"port {port} of {address} cannot be used: {reason}",
                remedy="give --bind an address of this machine"
                if is_elsewhere
                else "choose another one with --port; 0 takes any that is free",
            ) from error
        yield listening


async def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Until it is cancelled; `listening` is closed then."""
    config = Config()
    config.bind = [f"fd://{os.dup(listening.fileno())}"]
    config.errorlog = logging.getLogger("edgellm.console")
    config.include_server_header = False
    config.keep_alive_timeout = KEPT_S
    config.graceful_timeout = 1.0
    listening.close()
    await serve_asgi(app, config, mode="asgi")  # type: ignore[arg-type] # ASGI, in two libraries' words


async def serve_on_unix(app: ASGIApp, path: Path) -> None:
    """Until it is cancelled, on a socket that its owner alone can open; what was there before is replaced."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        mask = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(mask)
        listening.listen()
        try:
            await serve(app, listening)
        finally:
            path.unlink(missing_ok=True)


def bind_address(said: str) -> tuple[str, bool]:
    """An address of this machine as sockets take it, and whether nobody else can reach it. Raises UsageError."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if said == "localhost" else said.strip("[]"))
    except ValueError as error:
        raise UsageError(
            f"{said!r} is no address to listen on", remedy="give one like 192.168.1.7, or 0.0.0.0 for all"
        ) from error
    return str(address), address.is_loopback


def own_names(address: str) -> tuple[str, ...]:
    """What a console that listens on `address` may be called."""
    if ipaddress.ip_address(address).is_loopback:
        return tuple(dict.fromkeys((address, *LOOPBACK)))
    name = socket.gethostname()
    names = (address, name, name.partition(".")[0], f"{name.partition('.')[0]}.local")
    if not ipaddress.ip_address(address).is_unspecified:
        return names
    return (*names[1:], *LOOPBACK, *machine_addresses())


def machine_addresses() -> tuple[str, ...]:
    """All of this machine."""
    every = (entry.address.partition("%")[0] for card in psutil.net_if_addrs().values() for entry in card)
    return tuple(one for one in every if _is_address(one))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
