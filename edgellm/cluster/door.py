"""How the other members reach this one's cell directly: an ephemeral certificate and a listening TCP socket."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from edgellm.overlay.identity import MemberIdentity, make_member_identity
from edgellm.overlay.overlay import bind_listener
from edgellm.types.plan import Endpoint

MAX_ENDPOINTS = 8
_NOBODYS = ("127.", "0.", "169.254.")
"""Loopback, none, and addresses of one link alone: plans that name the last are refused (`edgellm.leasing.terms`)."""


@dataclass(frozen=True, slots=True)
class Door:
    """Belongs to one lease or cluster; nobody but members of its signed plan gets past the listener's TLS."""

    identity: MemberIdentity
    listener: socket.socket
    endpoints: tuple[Endpoint, ...]


@contextmanager
def open_door(
    listen_hosts: tuple[str, ...],
    *,
    port: int = 0,
    mapped: Callable[[int], tuple[str, int] | None] = lambda port: None,
) -> Iterator[Door]:
    """A door on all interfaces, advertised under `listen_hosts` (see `reachable_hosts`); `port` 0 takes any free one.

    `mapped` tells under which host and port a router leads to a port of this machine.
    """
    listener = bind_listener("0.0.0.0", port)
    try:
        bound = listener.getsockname()[1]
        endpoints = [Endpoint(host, bound) for host in listen_hosts]
        if (outside := mapped(bound)) is not None:
            endpoints.append(Endpoint(*outside))
        yield Door(make_member_identity(), listener, tuple(dict.fromkeys(endpoints)))
    finally:
        listener.close()


def may_dial(theirs: tuple[Endpoint, ...], own: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """Those of another member's endpoints that a member with `own` dials.

    Loopback only where it is itself there and nowhere else: a plan shall not make a machine talk to its own services.
    """
    if own and all(ipaddress.ip_address(endpoint.host).is_loopback for endpoint in own):
        return theirs
    return tuple(endpoint for endpoint in theirs if not ipaddress.ip_address(endpoint.host).is_loopback)


def reachable_hosts(multiaddrs: tuple[str, ...]) -> tuple[str, ...]:
    """IPv4 addresses under which this machine can be reached, best first.

    Those of its own `multiaddrs` (what the node listens on); a node that does not listen has the addresses of all interfaces
    that are up. Loopback comes only where there is nothing else.
    """
    direct = [address for address in multiaddrs if "/p2p-circuit" not in address]
    said = [part[2] for part in (address.split("/") for address in direct) if part[1:2] == ["ip4"]]
    own = _interface_hosts()
    # A router's address leads to the node's port and to no other; on a LAN the machine's own is the one to use.
    hosts = sorted(said, key=lambda host: host not in own) or own
    outside = [host for host in dict.fromkeys(hosts) if not host.startswith(_NOBODYS)]
    return tuple(outside[:MAX_ENDPOINTS]) or ("127.0.0.1",)


def _interface_hosts() -> list[str]:
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return [
        address.address
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
        for address in addresses
        if address.family == socket.AF_INET
    ]
