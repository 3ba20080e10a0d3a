"""The door for connections that others open: who comes in, how long it may take to say who it is, and when it is out again.

`ConnectionGate` decides (pure, but for its counts). `Gatekeeper` acts, in place of what py-libp2p 0.8.1 does with an accepted
connection: that keeps the place of every connection until the node ends, so that a node is deaf after the 512th.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
from libp2p.network.connection.raw_connection import RawConnection

from edgellm.p2p.limits import ConnectionLimits, Origin, origin
from edgellm.p2p.pace import Pace

log = logging.getLogger(__name__)

_CLOSE_S = 1.0


class Place:
    """A connection's place, from its acceptance to its end."""

    def __init__(self, gate: ConnectionGate, come_from: Origin) -> None:
        self._gate = gate
        self._origin = come_from
        self.pending = True

    def known(self) -> None:
        """The handshake is over: it no longer counts as pending."""
        if self.pending:
            self.pending = False
            self._gate._pending -= 1
            _less(self._gate._pending_by_address, self._origin.address)


class ConnectionGate:
    """Counts connections by where they come from."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._pace = Pace(limits.rate_per_address)
        self._inbound = 0
        self._pending = 0
        self._by_address: Counter[str] = Counter()
        self._by_network: Counter[str] = Counter()
        self._pending_by_address: Counter[str] = Counter()

    @property
    def inbound(self) -> int:
        return self._inbound

    @property
    def pending(self) -> int:
        return self._pending

    def objection(self, come_from: Origin, now: float) -> str | None:
        """Why a connection from there is not taken, or None; counts against its rate."""
        limits = self._limits
        if self._inbound >= limits.inbound:
            return "this node has all the connections that it takes"
        if self._pending >= limits.pending:
            return "too many connections have not said yet who they are"
        if come_from.address:
            if self._by_address[come_from.address] >= limits.per_address:
                return f"{come_from.address} has {limits.per_address} connections"
            if self._pending_by_address[come_from.address] >= limits.pending_per_address:
                return f"{come_from.address} has too many connections that have not said yet who they are"
            if not self._pace.admits(come_from.address, now):
                return f"{come_from.address} connects too often"
        if come_from.network and self._by_network[come_from.network] >= limits.per_network:
            return f"{come_from.network} has {limits.per_network} connections"
        return None

    @contextmanager
    def admit(self, come_from: Origin) -> Iterator[Place]:
        """Holds the place of a connection, which `objection` had nothing against, while the context lasts."""
        place = Place(self, come_from)
        self._inbound += 1
        self._pending += 1
        for counts, key in self._counts(come_from):
            counts[key] += 1
        _more(self._pending_by_address, come_from.address)
        try:
            yield place
        finally:
            place.known()
            self._inbound -= 1
            for counts, key in self._counts(come_from):
                _less(counts, key)

    def _counts(self, come_from: Origin) -> list[tuple[Counter[str], str]]:
        pairs = [(self._by_address, come_from.address), (self._by_network, come_from.network)]
        return [(counts, key) for counts, key in pairs if key]


class Gatekeeper:
    """Takes accepted TCP connections into a libp2p swarm."""

    def __init__(
        self, swarm: Any, limits: ConnectionLimits, *, now: Callable[[], float] = trio.current_time
    ) -> None:
        self._swarm = swarm
        self._limits = limits
        self._now = now
        self.gate = ConnectionGate(limits)
        self.refused: Counter[str] = Counter()

    async def accept(self, connection: Any, listening: Any) -> None:
        """Serves one connection from its acceptance to its end; raises nothing."""
        come_from = origin((connection.get_remote_address() or ("", 0))[0])
        if (against := self.gate.objection(come_from, self._now())) is not None:
            self._refuse(against)
            await _close(connection)
            return
        with self.gate.admit(come_from) as place:
            try:
                muxed = await self._swarm.upgrade_inbound_raw_conn(
                    RawConnection(connection, False), listening
                )
                place.known()
                if len(self._swarm.get_connections(muxed.peer_id)) > self._limits.per_peer:
                    self._refuse(f"peer {muxed.peer_id} has {self._limits.per_peer} connections")
                    await muxed.close()
                else:
                    await muxed.event_closed.wait()
            except Exception as error:  # noqa: BLE001 - whatever a stranger breaks is the end of its connection only
                log.debug("a connection from %s: %s", come_from.address or "this machine", error)
            finally:
                await _close(connection)

    def _refuse(self, reason: str) -> None:
        self.refused["connections"] += 1
        log.debug("a connection was refused: %s", reason)


async def _close(connection: Any) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
        try:
            await connection.close()
        except Exception:
            log.debug("closing failed", exc_info=True)


def _more(counts: Counter[str], key: str) -> None:
    if key:
        counts[key] += 1


def _less(counts: Counter[str], key: str) -> None:
    if key:
        counts[key] -= 1
        if counts[key] <= 0:
            del counts[key]
