"""Ports of the router that lead to this machine, by UPnP (IGD) or NAT-PMP (RFC 6886): asked for, renewed, given back."""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import trio

from edgellm.p2p.reachability import Mapping

log = logging.getLogger(__name__)

LEASE_S = 3600
RENEW_S = LEASE_S / 3
DISCOVERY_MS = 1500
REMOVE_TIMEOUT_S = 3.0
SEARCH_INTERVAL_S = 600.0
"""Where no router answered."""
_NAT_PMP_PORT = 5351
_NAT_PMP_TRIES_S = (0.25, 0.5, 1.0)
_MAPS_TCP = 2
_RESPONSE = 128
_NAME = "EdgeLLM"


class Router(Protocol):
    """What can map ports; all of it waits for the network, so call it in a thread."""

    by: str

    def add(self, port: int) -> Mapping | None:
        """A TCP port of the router that leads to `port` of this machine for `LEASE_S`; again: for as long once more."""

    def remove(self, mapping: Mapping) -> None:
        """Ends it. May raise OSError or Exception: then its lease ends it."""


class PortMapper:
    """Keeps ports mapped while `run` runs; `mappings` are those that are there now."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = list(dict.fromkeys(port for port in ports if port))
        self.mappings: tuple[Mapping, ...] = ()
        self.tried = trio.Event()
        """Set once it is known whether a router maps ports."""

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Maps the ports while the context is open; gives them back at its end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                await self._give_back()

    async def _keep(self) -> None:
        self._router: Router | None = None
        while True:
            if self._router is None:
                self._router = await trio.to_thread.run_sync(find_router, abandon_on_cancel=True)
            if self._router is not None:
                await self._map(self._router)
            self.tried.set()
            await trio.sleep(RENEW_S if self.mappings else SEARCH_INTERVAL_S)

    async def _map(self, router: Router) -> None:
        found = []
        for port in self._ports:
            try:
                # Not abandoned half-way: what was mapped must be known, to be given back.
                mapping = await trio.to_thread.run_sync(router.add, port)
            except Exception as error:  # noqa: BLE001 - a router's refusal has no type of its own
                log.info("%s: the router does not map port %d: %s", router.by, port, error)
                continue
            if mapping is not None:
                found.append(mapping)
        self.mappings = tuple(found)
        if not found:
            self._router = None

    async def _give_back(self) -> None:
        router, mappings = getattr(self, "_router", None), self.mappings
        self.mappings = ()
        if router is None:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + REMOVE_TIMEOUT_S):
            for mapping in mappings:
                with suppress(Exception):
                    await trio.to_thread.run_sync(router.remove, mapping, abandon_on_cancel=True)


def find_router() -> Router | None:
    """The router that this machine's default route leads to, if it maps ports."""
    gateway = default_gateway()
    if gateway is None:
        return None
    # The first answers at once or not at all; a search for the second takes seconds where there is none.
    searches: tuple[Callable[[str], Router | None], ...] = (_find_nat_pmp, _find_upnp)
    for search in searches:
        try:
            router = search(gateway)
        except Exception as error:  # noqa: BLE001 - miniupnpc raises Exception itself
            log.debug("no router found: %s", error)
            continue
        if router is not None:
            return router
    return None


def mappable_port() -> int:
    """A TCP port that is free now and that the router can lead to for as long as this node runs; 0 where there is no router."""
    if default_gateway() is None:
        return 0
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


def default_gateway() -> str | None:
    """The IPv4 address that this machine's default route leads to."""
    try:
        lines = Path("/proc/net/route").read_text().splitlines()[1:]
    except OSError:
        return None
    for fields in map(str.split, lines):
        if fields[1] == "00000000" and int(fields[3], 16) & 0x2:
            return socket.inet_ntoa(struct.pack("<I", int(fields[2], 16)))
    return None


@dataclass
class _Upnp:
    gateway: Any
    by: str = "UPnP"

    def add(self, port: int) -> Mapping | None:
        outside = str(ipaddress.ip_address(self.gateway.externalipaddress()))
        for wanted in (port, *range(port + 1, port + 4)):
            taken = self.gateway.getspecificportmapping(wanted, "TCP")
            if taken is not None and (taken[0], taken[1]) != (self.gateway.lanaddr, port):
                continue
            self.gateway.addportmapping(wanted, "TCP", self.gateway.lanaddr, port, _NAME, "", LEASE_S)
            return Mapping(outside, wanted, port, self.by)
        return None

    def remove(self, mapping: Mapping) -> None:
        self.gateway.deleteportmapping(mapping.port, "TCP")


def _find_upnp(gateway: str) -> Router | None:
    import miniupnpc

    found = miniupnpc.UPnP()
    found.discoverdelay = DISCOVERY_MS
    if not found.discover():
        return None
    found.selectigd()
    return _Upnp(found) if found.externalipaddress() else None


@dataclass
class _NatPmp:
    gateway: str
    outside: str
    by: str = "NAT-PMP"

    def add(self, port: int) -> Mapping | None:
        answer = _nat_pmp(self.gateway, struct.pack("!BBHHHI", 0, _MAPS_TCP, 0, port, port, LEASE_S), 16)
        inside, outside_port, lifetime = struct.unpack("!HHI", answer[8:16])
        return Mapping(self.outside, outside_port, inside, self.by) if lifetime and inside == port else None

    def remove(self, mapping: Mapping) -> None:
        _nat_pmp(self.gateway, struct.pack("!BBHHHI", 0, _MAPS_TCP, 0, mapping.inside_port, 0, 0), 16)


def _find_nat_pmp(gateway: str) -> Router | None:
    answer = _nat_pmp(gateway, bytes((0, 0)), 12)
    return _NatPmp(gateway, socket.inet_ntoa(answer[8:12]))


def _nat_pmp(gateway: str, question: bytes, answer_bytes: int) -> bytes:
    """The router's answer. Raises OSError when it refuses or does not answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((gateway, _NAT_PMP_PORT))  # takes datagrams of the gateway only
        for wait_s in _NAT_PMP_TRIES_S:
            asking.settimeout(wait_s)
            asking.send(question)
            try:
                answer = asking.recv(64)
            except TimeoutError:
                continue
            if len(answer) < answer_bytes or answer[1] != question[1] + _RESPONSE:
                continue
            code = int.from_bytes(answer[2:4], "big")
            if code:
                raise OSError(f"the router refuses with code {code}")
            return answer
    raise OSError("the router does not answer")
