"""Reaching a peer: all of its addresses at once, each a little after the other, until one answers.

Stands in for the dial of py-libp2p 0.8.1, which always waits 250 ms, tries one address, and refuses a peer for a
minute after a failure. The DHT and identify dial through here as well.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from contextlib import suppress
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import trio
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.utils.dns_utils import resolve_multiaddr_with_retry
from multiaddr import Multiaddr

from edgellm.errors import NetworkError
from edgellm.p2p.addresses import advertised, ip_endpoint, is_name, is_public, leads_outside, written
from edgellm.p2p.connections import LISTENING_PORT, is_relayed

STAGGER_S = 0.1  # head start of an address over the next one
MAX_ADDRESSES = 16  # others tell us addresses: a lying one must not make us dial the world
LOOKUP_TIMEOUT_S = 4.0  # for dials that the DHT asks for
UNREACHABLE_S = 30.0  # for which the DHT does not try a peer again; `connect` always does
RESOLVE_S = 3.0
MAX_OF_NAME = 4
KNOWN_S = 7200  # how long an address that worked is remembered, as libp2p does with signed ones
_MAX_UNREACHABLE = 1000

CircuitDial: TypeAlias = Callable[[Multiaddr, ID], Awaitable[Any]]


class Dialer:
    """Dials peers for one libp2p host, one dial per peer at a time."""

    def __init__(self, host: Any, port: Callable[[], int] = lambda: 0) -> None:
        """`port`: where dials to the internet come from, so that routers keep it open; 0 for any."""
        self._port = port
        self._swarm = host.get_network()
        self._host = host
        self._locks: WeakValueDictionary[ID, trio.Lock] = WeakValueDictionary()
        self._unreachable_until: dict[ID, float] = {}
        self.dial_circuit: CircuitDial | None = None
        self.doubtful: Callable[[Multiaddr], bool] = lambda address: False
        """Of addresses through relays, those that are tried only when all others have failed."""
        self._swarm.dial_peer = self._dial_for_libp2p

    def connections(self, peer_id: ID) -> list[Any]:
        """The open connections to a peer, possibly none."""
        return [
            connection
            for connection in self._swarm.get_connections(peer_id)
            if not connection.is_closed and connection.muxed_conn.is_established
        ]

    async def connect(
        self,
        peer: str,
        addresses: Sequence[str] = (),
        *,
        timeout_s: float = 10.0,
        direct: bool = False,
        named: bool = False,
    ) -> None:
        """Makes sure that there is a connection to `peer`, with `direct` one through no relay.

        `addresses` (multiaddrs, with or without `/p2p/<peer>`) come before those already known; `named`: this machine's user
        gave them, so that they may lead to this machine itself. Raises NetworkError that names the peer, every address tried
        and why it failed.
        """
        try:
            peer_id = ID.from_base58(peer)
            given = [Multiaddr(address) for address in addresses]
        except ValueError as error:
            raise NetworkError(f"cannot reach peer {peer}: {error}") from error
        await self._connect(peer_id, given, timeout_s, direct=direct, named=named)

    async def _dial_for_libp2p(self, peer_id: ID) -> list[Any]:
        if trio.current_time() < self._unreachable_until.get(peer_id, -math.inf):
            raise NetworkError(f"peer {peer_id} could not be reached a moment ago")
        try:
            await self._connect(peer_id, (), LOOKUP_TIMEOUT_S)
        except NetworkError:
            if len(self._unreachable_until) >= _MAX_UNREACHABLE:
                self._unreachable_until.clear()
            self._unreachable_until[peer_id] = trio.current_time() + UNREACHABLE_S
            raise
        return self.connections(peer_id)

    async def _connect(
        self,
        peer_id: ID,
        given: Sequence[Multiaddr],
        timeout_s: float,
        *,
        direct: bool = False,
        named: bool = False,
    ) -> None:
        def there() -> bool:
            return any(not (direct and is_relayed(each)) for each in self.connections(peer_id))

        if there():
            return
        if peer_id == self._host.get_id():
            raise NetworkError(f"peer {peer_id} is this node itself")
        failures: dict[str, str] = {}
        with trio.move_on_after(timeout_s):
            lock = self._locks.setdefault(peer_id, trio.Lock())
            async with lock:
                if not there():
                    candidates = self._candidates(peer_id, given, named=named)
                    if direct:
                        candidates = [address for address in candidates if not _is_circuit(address)]
                    doubtful = [each for each in candidates if _is_circuit(each) and self.doubtful(each)]
                    trusted = [address for address in candidates if address not in doubtful]
                    safe = frozenset(given) if named else frozenset()
                    if doubtful and trusted:
                        with trio.move_on_after(timeout_s / 2):
                            await self._race(peer_id, trusted, safe, failures)
                        trusted = []
                    if not there():
                        await self._race(peer_id, [*trusted, *doubtful], safe, failures)
        if not there():
            tried = "; ".join(f"{address}: {reason}" for address, reason in failures.items())
            raise NetworkError(
                f"cannot reach peer {peer_id}: {tried or 'no address is known'}",
                remedy="check that the peer runs and that its address and port can be reached from here",
            )

    async def _race(
        self,
        peer_id: ID,
        candidates: Iterable[Multiaddr],
        safe: Set[Multiaddr],
        failures: dict[str, str],
    ) -> None:
        async with trio.open_nursery() as nursery:

            async def attempt(address: Multiaddr, over: trio.Event) -> None:
                failures[str(address)] = "no answer in time"
                try:
                    if _is_circuit(address) and self.dial_circuit is not None:
                        await self.dial_circuit(address, peer_id)
                    elif is_name(str(address)) and address not in safe and self._leads_outside():
                        await self._dial_name(address, peer_id)
                    else:
                        await self._dial(address, peer_id)
                except Exception as error:  # noqa: BLE001 - any failure of one address is a failure of that address
                    failures[str(address)] = _root_cause(error)
                    over.set()
                else:
                    self._host.get_peerstore().add_addrs(peer_id, [address], KNOWN_S)
                    nursery.cancel_scope.cancel()

            for address in candidates:
                over = trio.Event()
                nursery.start_soon(attempt, address, over)
                with trio.move_on_after(STAGGER_S):
                    await over.wait()

    async def _dial_name(self, address: Multiaddr, peer_id: ID) -> None:
        """As `_dial`, to what a name that a peer told stands for, where that is not this machine itself."""
        found = await resolve_multiaddr_with_retry(address, max_retries=1, timeout_seconds=RESOLVE_S)
        # It may also be what it was asked for, or another name.
        outside = [each for each in found or () if ip_endpoint(str(each)) and leads_outside(str(each))]
        outside = outside[:MAX_OF_NAME]
        if not outside:
            raise NetworkError("its name leads to no other machine")
        # One at a time: that of a name several work is rare, and there are other addresses.
        for each in outside[:-1]:
            with suppress(Exception):
                await self._dial(each, peer_id)
                return
        await self._dial(outside[-1], peer_id)

    def _leads_outside(self) -> bool:
        """Whether this node is to be reached from other machines. Peers of one machine alone meet nowhere else."""
        return any(leads_outside(str(address)) for address in advertised(self._host.get_transport_addrs()))

    async def _dial(self, address: Multiaddr, peer_id: ID) -> None:
        """Connects from the port that routers are to keep open for this node, where it goes through one."""
        endpoint = ip_endpoint(str(address))
        port = self._port() if endpoint is not None and ":" not in endpoint[0] else 0
        if endpoint is not None and port and is_public(endpoint[0]):
            try:
                connection = await self._swarm.dial_addr(address, peer_id, ("0.0.0.0", port))
            except Exception as error:
                # This port has been connected to that address a moment ago: from any other, then.
                if not _is_taken(error):
                    raise
            else:
                setattr(connection, LISTENING_PORT, True)
                return
        await self._swarm.dial_addr(address, peer_id)

    def _candidates(self, peer_id: ID, given: Sequence[Multiaddr], *, named: bool = False) -> list[Multiaddr]:
        try:
            known = self._host.get_peerstore().addrs(peer_id)
        except PeerStoreError:
            known = []
        own = {str(address) for address in self._host.get_transport_addrs()}
        suffix = f"/p2p/{peer_id}"
        bare = dict.fromkeys(text.removesuffix(suffix) for text in written((*given, *known)))
        if self._leads_outside():
            # No peer is to make a machine talk to its own services.
            safe = {text.removesuffix(suffix) for text in written(given)} if named else set[str]()
            bare = {text: None for text in bare if text in safe or leads_outside(text)}
        usable = [
            address
            for text, address in ((text, Multiaddr(text)) for text in bare)
            if text not in own and (not _is_circuit(address) or self.dial_circuit is not None)
        ]
        # A relayed path is slower than any direct one, so it starts last.
        return sorted(usable, key=_is_circuit)[:MAX_ADDRESSES]


def _is_circuit(address: Multiaddr) -> bool:
    return "/p2p-circuit" in str(address)


def _is_taken(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            return True
        seen = _cause(seen)
    return False


def _cause(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions[0]
    return error.__cause__ or error.__context__


def _root_cause(error: BaseException) -> str:
    seen = error
    while (cause := _cause(seen)) is not None:
        seen = cause
    if isinstance(seen, OSError) and seen.strerror:
        return seen.strerror
    return str(seen) or type(seen).__name__
