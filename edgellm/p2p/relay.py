"""Circuit relay v2: reaching a peer that accepts no connections (behind NAT) through one that does.

The peer behind NAT reserves a place at a relay and advertises `<relay's address>/p2p/<relay>/p2p-circuit`; others
ask the relay to join them to it. Noise runs end to end, so the relay sees ciphertext only. Relayed streams are
several times slower than direct ones and cost the relay both ways.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import trio
from libp2p.connection_types import ConnectionType
from libp2p.host.exceptions import StreamFailure
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID as HOP
from libp2p.relay.circuit_v2.protocol import STOP_PROTOCOL_ID as STOP
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from multiaddr import Multiaddr

from edgellm.errors import EdgeError, NetworkError
from edgellm.p2p.addresses import split_peer
from edgellm.p2p.connections import direct_connections
from edgellm.p2p.dialer import Dialer
from edgellm.p2p.muxer import ended

log = logging.getLogger(__name__)

WANTED = 2
"""Relays to be reached through, where this node finds them itself: one may fail, or lie."""
RENEW_INTERVAL_S = 60.0  # far below the reservation's hour, so that a relay that restarted is used again soon
REQUEST_TIMEOUT_S = 10.0
FRAME_STALL_S = 10.0  # one frame on its way to a relay
MAX_RELAYED_CONNECTIONS = 128
"""That others made to this node, at once: a quarter of all that it has room for."""
FORGIVEN_S = 600.0
"""After which a relay that refused is asked again."""
DOUBT_S = 120.0
_MAX_REFUSED = 256


class Relay:
    """A node's use of relays: dialling through them always, being reached through those that it reserves at.

    `taken` and `dialled` are called with the peer of every relayed connection that was made from outside, or from here.
    """

    def __init__(self, host: Any, dialer: Dialer, *, through: tuple[str, ...] = ()) -> None:
        self._host = host
        self._dialer = dialer
        self._through = through
        self._reserved: dict[str, None] = {}
        self._refused: dict[str, float] = {}
        self._doubtful: dict[str, float] = {}
        self._incoming = 0
        self.taken: Callable[[ID], None] = _ignore
        self.dialled: Callable[[ID], None] = _ignore
        dialer.dial_circuit = self._dial
        dialer.doubtful = self._is_doubtful
        host.set_stream_handler(STOP, self._take)

    def addresses(self) -> list[Multiaddr]:
        """Where this node can be reached through the relays at which it has a place."""
        return [Multiaddr(f"{relay}/p2p-circuit") for relay in self._reserved]

    def peers(self) -> tuple[str, ...]:
        """The ids of the relays at which it has a place."""
        return tuple(split_peer(relay)[1] for relay in self._reserved)

    def lost(self) -> bool:
        """Whether a relay at which it has a place is connected no longer."""
        swarm = self._host.get_network()
        return any(not direct_connections(swarm, ID.from_base58(peer)) for peer in self.peers())

    async def reserve(self) -> None:
        """Takes (or renews) a place at every relay that its owner named. Raises NetworkError when one refuses."""
        for relay in self._through:
            await self._reserve_at(relay)

    async def renew(self) -> None:
        """Renews all places; those that are refused now are given up. Raises nothing."""
        for relay in dict.fromkeys((*self._through, *self._reserved)):
            try:
                await self._reserve_at(relay)
            except EdgeError as error:
                log.warning("%s", error)

    async def reserve_at_some(self, relays: Sequence[str]) -> bool:
        """Takes places at the first of `relays` (full multiaddrs) that grant them until it has `WANTED`; whether any is new."""
        now, held = trio.current_time(), set(self.peers())
        new = False
        for relay in relays:
            peer = split_peer(relay)[1]
            if len(self._reserved) >= WANTED:
                break
            if peer in held or now < self._refused.get(peer, -math.inf):
                continue
            try:
                await self._reserve_at(relay)
            except EdgeError as error:
                log.info("%s", error)
                if len(self._refused) >= _MAX_REFUSED:
                    self._refused.clear()
                self._refused[peer] = now + FORGIVEN_S
            else:
                held.add(peer)
                new = True
        return new

    def leave(self) -> bool:
        """Uses those that it found itself no longer; whether it did."""
        left = [relay for relay in self._reserved if relay not in self._through]
        for relay in left:
            del self._reserved[relay]
        return bool(left)

    async def _reserve_at(self, relay: str) -> None:
        self._reserved.pop(relay, None)
        address, peer = split_peer(relay)
        named = relay in self._through
        await self._dialer.connect(peer, (address,), timeout_s=REQUEST_TIMEOUT_S, direct=True, named=named)
        request = circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.RESERVE)
        await self._drop(await self._ask(peer, request, "refused to relay for this node"))
        self._reserved[relay] = None

    async def _dial(self, address: Multiaddr, peer_id: ID) -> None:
        relay, _, rest = str(address).partition("/p2p-circuit")
        if rest:
            raise NetworkError(f"{address} is no address through one relay")
        relay_address, relay_peer = split_peer(relay)
        await self._dialer.connect(relay_peer, (relay_address,), timeout_s=REQUEST_TIMEOUT_S, direct=True)
        request = circuit_pb2.HopMessage(
            type=circuit_pb2.HopMessage.CONNECT, peer=circuit_pb2.PeerId(id=peer_id.to_bytes())
        )
        stream = await self._ask(relay_peer, request, f"could not join this node to peer {peer_id}")
        try:
            raw = _raw_connection(stream, address, initiator=True, on_end=lambda: self._doubt(relay_peer))
            await self._host.get_network().upgrade_outbound_raw_conn(raw, peer_id)
        except BaseException:
            await self._drop(stream)
            raise
        self.dialled(peer_id)

    def _doubt(self, relay: str) -> None:
        """A connection through it has ended: it may be its doing, so that for a while others are tried before it."""
        if len(self._doubtful) >= _MAX_REFUSED:
            self._doubtful.clear()
        self._doubtful[relay] = trio.current_time() + DOUBT_S

    def _is_doubtful(self, address: Multiaddr) -> bool:
        relay = str(address).partition("/p2p-circuit")[0].rpartition("/p2p/")[2]
        return trio.current_time() < self._doubtful.get(relay, -math.inf)

    async def _ask(self, relay: str, request: Any, refusal: str) -> Any:
        try:
            stream = await self._host.new_stream(ID.from_base58(relay), [HOP])
        except StreamFailure as error:
            raise NetworkError(f"peer {relay} does not relay for others") from error
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                await write_delimited_msg(stream, request)
                answer = await read_delimited_msg(stream, circuit_pb2.HopMessage)
        except Exception as error:
            await self._drop(stream)
            raise NetworkError(f"relay {relay} does not answer: {error}") from error
        except BaseException:
            await self._drop(stream)
            raise
        if answer.status != circuit_pb2.OK:
            await self._drop(stream)
            reason = _status_name(answer.status)
            raise NetworkError(f"relay {relay} {refusal}: {reason}")
        return stream

    async def _take(self, stream: Any) -> None:
        """Takes a connection that a relay brings; who is behind it is proven by its own Noise handshake.

        Lasts as long as the connection: a node takes a stream for done with when its handler is.
        """
        relay = str(stream.muxed_conn.peer_id)
        if relay not in self.peers() or self._incoming >= MAX_RELAYED_CONNECTIONS:
            await self._drop(stream)
            return
        self._incoming += 1
        try:
            await self._carry(stream, relay)
        finally:
            self._incoming -= 1

    async def _carry(self, stream: Any, relay: str) -> None:
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                asked = await read_delimited_msg(stream, circuit_pb2.StopMessage)
                known = asked.type == circuit_pb2.StopMessage.CONNECT
                answer = circuit_pb2.StopMessage(
                    type=circuit_pb2.StopMessage.STATUS,
                    status=circuit_pb2.OK if known else circuit_pb2.UNEXPECTED_MESSAGE,
                )
                await write_delimited_msg(stream, answer)
            if not known:
                await self._drop(stream)
                return
            address = Multiaddr(f"/p2p/{relay}/p2p-circuit")
            raw = _raw_connection(stream, address, initiator=False)
            muxed = await self._host.get_network().upgrade_inbound_raw_conn(raw, address)
        except Exception as error:  # noqa: BLE001 - what a relay brings ends its own stream at worst
            log.debug("relay %s brought no connection: %r", relay, error)
            await self._drop(stream)
            return
        self.taken(muxed.peer_id)
        await ended(stream.muxed_stream)

    async def _drop(self, stream: Any) -> None:
        with suppress(Exception), trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
            await stream.reset()


def _ignore(peer_id: ID) -> None:
    return None


def _status_name(status: int) -> str:
    return next((name for name, number in circuit_pb2.Status.items() if number == status), f"status {status}")


class _CircuitStream:
    """A stream to a relay as the bytes under another connection, whose messages must not be cut in half."""

    def __init__(self, stream: Any, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end = on_end

    async def write(self, data: bytes) -> None:
        with trio.CancelScope(deadline=trio.current_time() + FRAME_STALL_S, shield=True) as stall:
            await self._stream.write(data)
        if stall.cancelled_caught:
            await self.close()
            raise StreamEOF(f"the relay takes no data for {FRAME_STALL_S:g} s")

    async def read(self, n: int | None = None) -> bytes:
        try:
            received: bytes = await self._stream.read(n)
        except StreamEOF:
            return b""
        return received

    async def close(self) -> None:
        self._on_end()
        with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
            await self._stream.reset()

    def get_remote_address(self) -> None:
        return None


def _raw_connection(
    stream: Any, address: Multiaddr, *, initiator: bool, on_end: Callable[[], None] = lambda: None
) -> RawConnection:
    return RawConnection(
        stream=_CircuitStream(stream, on_end),
        initiator=initiator,
        connection_type=ConnectionType.RELAYED,
        addresses=[address],
    )
