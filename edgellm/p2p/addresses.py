"""Which addresses a node listens on, and which of its machine's it tells others."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import math
import socket
import time
from collections.abc import Callable, Iterable, Sequence

import psutil
from multiaddr import Multiaddr

from edgellm.errors import UsageError

_MACHINE_LOOKUP_INTERVAL_S = 10.0


def split_peer(multiaddr: str) -> tuple[str, str]:
    """The address and the peer id of `<address>/p2p/<peer>`. Raises UsageError for anything else."""
    try:
        Multiaddr(multiaddr)
        address, separator, peer = multiaddr.rpartition("/p2p/")
    except ValueError:
        separator = ""
    if not separator or not address or "/" in peer:
        raise UsageError(
            f"{multiaddr!r} is no address of a peer",
            remedy="write it as /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW...",
        )
    return address, peer


def without_peer(multiaddr: str) -> str:
    """A multiaddr without its trailing `/p2p/<peer>`, if it has one."""
    address, separator, peer = multiaddr.rpartition("/p2p/")
    return address if separator and "/" not in peer else multiaddr


def ip_endpoint(multiaddr: str) -> tuple[str, int] | None:
    """The IP address and TCP port of a direct address (`/ip4/.../tcp/...`); None for any other."""
    parts = without_peer(multiaddr).split("/")
    if len(parts) != 5 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        return None
    try:
        return str(ipaddress.ip_address(parts[2])), int(parts[4])
    except ValueError:
        return None


def is_public(host: str) -> bool:
    """Whether `host` is an IP address of the public internet."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def leads_outside(multiaddr: str) -> bool:
    """Whether an address that others tell leads to another machine: not to the one that dials it (its loopback), nor to
    something of its own link that is no peer (a cloud's metadata service). Of one through a relay the relay's counts.

    A name's is not known yet: see `is_name`. Of other shapes none does: libp2p dials the last of several addresses in one.
    """
    way = without_peer(multiaddr.partition("/p2p-circuit")[0])
    if not way or is_name(way):
        return True
    if (endpoint := ip_endpoint(way)) is None:
        return False
    ip = ipaddress.ip_address(endpoint[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return not (ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast)


def is_name(multiaddr: str) -> bool:
    """Whether it is `/dns/<name>/tcp/<port>` (or dns4, dns6)."""
    parts = without_peer(multiaddr).split("/")
    return len(parts) == 5 and parts[1] in ("dns", "dns4", "dns6") and parts[3] == "tcp"


def tcp_multiaddr(host: str, port: int) -> str:
    """The multiaddr of an IP address and a TCP port."""
    return f"/ip{ipaddress.ip_address(host).version}/{host}/tcp/{port}"


def written(addresses: Iterable[Multiaddr]) -> list[str]:
    """Addresses that strangers told, as text, without those that are none: Multiaddr takes any bytes and fails when written."""
    found = []
    for address in addresses:
        with contextlib.suppress(ValueError):
            found.append(str(address))
    return found


def check_listen(multiaddrs: Iterable[str]) -> tuple[Multiaddr, ...]:
    """The parsed listen addresses, after checking that each can be bound now.

    libp2p listens with SO_REUSEPORT, so that two nodes on one port would both start and share its connections at
    random; hence the check. Raises UsageError naming the address and the cause.
    """
    parsed = []
    for multiaddr in multiaddrs:
        try:
            address = Multiaddr(multiaddr)
            host, port = _host_and_port(address)
        except (ValueError, LookupError) as error:
            raise UsageError(
                f"cannot listen on {multiaddr!r}: it is no TCP address",
                remedy="write it as /ip4/0.0.0.0/tcp/4001",
            ) from error
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Without this a port whose last user closed it a minute ago counts as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise _cannot_listen(multiaddr, port, error) from error
        parsed.append(address)
    return tuple(parsed)


class Advertisement:
    """What this node tells others about where it is, at any time: libp2p asks before every message it signs."""

    def __init__(self, announce: Iterable[str] = ()) -> None:
        self.relayed: Callable[[], list[Multiaddr]] = list
        self.confirmed: Callable[[], list[Multiaddr]] = list
        """Addresses under which others have reached this node through a router."""
        self._announce = [Multiaddr(address) for address in announce]
        self._looked_up: tuple[float, tuple[str, ...], list[Multiaddr]] = (-math.inf, (), [])

    def __call__(self, listening: Sequence[Multiaddr]) -> list[Multiaddr]:
        """The announced addresses if there are any, else the confirmed ones and the machine's; and those through relays."""
        direct = self._announce or [*self.confirmed(), *self._machine(listening)]
        return list(dict.fromkeys(direct)) + self.relayed()

    def own(self, listening: Sequence[Multiaddr]) -> list[Multiaddr]:
        """Those of them that others are told without having been asked: the announced ones, else the machine's."""
        return self._announce or self._machine(listening)

    @property
    def announced(self) -> tuple[str, ...]:
        return tuple(map(str, self._announce))

    def _machine(self, listening: Sequence[Multiaddr]) -> list[Multiaddr]:
        looked_up_at, asked, found = self._looked_up
        now, asking = time.monotonic(), tuple(map(str, listening))
        if asking != asked or now > looked_up_at + _MACHINE_LOOKUP_INTERVAL_S:
            found = advertised(listening)
            self._looked_up = (now, asking, found)
        return found


def advertised(listening: Iterable[Multiaddr]) -> list[Multiaddr]:
    """What others can dial: each wildcard replaced by the machine's addresses, the likeliest first.

    Loopback is left out, unless nothing else is there.
    """
    found: dict[str, None] = {}
    for address in listening:
        host, port = _host_and_port(address)
        ip = ipaddress.ip_address(host)
        for each in _machine_addresses(ip.version) if ip.is_unspecified else (host,):
            found[f"/ip{ip.version}/{each}/tcp/{port}"] = None
    outside = [text for text in found if not is_loopback(text.split("/")[2])]
    return [Multiaddr(text) for text in outside or found]


def _machine_addresses(version: int) -> list[str]:
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    wanted = socket.AF_INET if version == 4 else socket.AF_INET6
    addresses = [
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family == wanted and not ipaddress.ip_address(entry.address.partition("%")[0]).is_link_local
    ]
    preferred = _default_route_address(version)
    return sorted(addresses, key=lambda address: address != preferred)


def _default_route_address(version: int) -> str | None:
    family, somewhere = (socket.AF_INET, "192.0.2.1") if version == 4 else (socket.AF_INET6, "2001:db8::1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((somewhere, 9))  # a UDP connect only looks up the route; nothing is sent
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return address


def _host_and_port(address: Multiaddr) -> tuple[str, int]:
    _, family, host, transport, port = (
        str(address).split("/")[:5] if str(address).count("/") == 4 else [""] * 5
    )
    if family not in ("ip4", "ip6") or transport != "tcp":
        raise ValueError(f"{address} is not /ip4/.../tcp/... or /ip6/.../tcp/...")
    return host, int(port)


def _cannot_listen(multiaddr: str, port: int, error: OSError) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(
            f"cannot listen on {multiaddr}: port {port} is taken",
            remedy="stop the other program, or choose another port (0 takes any free one)",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(
            f"cannot listen on {multiaddr}: this machine has no such address",
            remedy="listen on /ip4/0.0.0.0/tcp/... for all of its addresses",
        )
    return UsageError(f"cannot listen on {multiaddr}: {error.strerror}")
