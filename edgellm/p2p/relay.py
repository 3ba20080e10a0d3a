"""Circuit relay v2: reaching a peer that accepts no connections (behind NAT) through one that does.

The peer behind NAT reserves a place at a relay and advertises `<relay's address>/p2p/<relay>/p2p-circuit`; others
ask the relay to join them to it. Noise runs end to end, so the relay sees ciphertext only. Relayed streams are
several times slower than direct ones and cost the relay both ways.
"""

from __future__ import annotations

import logging
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
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from multiaddr import Multiaddr

from edgellm.errors import EdgeError, NetworkError
from edgellm.p2p.addresses import split_peer
from edgellm.p2p.dialer import Dialer
from edgellm.p2p.network import WRITE_STALL_S

log = logging.getLogger(__name__)

# A cluster's traffic for as long as a session may live; libp2p's defaults allow 1 GiB and 8 circuits.
LIMITS = RelayLimits(duration=0, data=1 << 50, max_circuit_conns=64, max_reservations=256)
RENEW_INTERVAL_S = 60.0  # far below the reservation's hour, so that a relay that restarted is used again soon
REQUEST_TIMEOUT_S = 10.0
FRAME_STALL_S = 10.0  # one frame on its way to a relay


class Relay:
    """This node's part in relaying: dialling through relays always, reserving and serving as asked."""

    def __init__(self, host: Any, dialer: Dialer, *, through: tuple[str, ...], serve: bool) -> None:
        self._host = host
        self._dialer = dialer
        self._through = through
        self._reserved: dict[str, None] = {}
        dialer.dial_circuit = self._dial
        protocol = _AuthenticatedRelay(host, limits=LIMITS, allow_hop=serve, write_timeout=int(WRITE_STALL_S))
        if serve:
            host.set_stream_handler(HOP, protocol._handle_hop_stream)
        if through:
            host.set_stream_handler(STOP, protocol._handle_stop_stream)

    def addresses(self) -> list[Multiaddr]:
        """Where this node can be reached through the relays at which it has a place."""
        return [Multiaddr(f"{relay}/p2p-circuit") for relay in self._reserved]

    async def reserve(self) -> None:
        """Takes (or renews) a place at every relay given. Raises NetworkError when one refuses."""
        for relay in self._through:
            self._reserved.pop(relay, None)
            address, peer = split_peer(relay)
            await self._dialer.connect(peer, (address,), timeout_s=REQUEST_TIMEOUT_S)
            request = circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.RESERVE)
            await self._drop(await self._ask(peer, request, "refused to relay for this node"))
            self._reserved[relay] = None

    async def stay_reserved(self) -> None:
        """Renews all places for ever."""
        while self._through:
            await trio.sleep(RENEW_INTERVAL_S)
            try:
                await self.reserve()
            except EdgeError as error:
                log.warning("%s", error)

    async def _dial(self, address: Multiaddr, peer_id: ID) -> None:
        relay, _, rest = str(address).partition("/p2p-circuit")
        if rest:
            raise NetworkError(f"{address} is no address through one relay")
        relay_address, relay_peer = split_peer(relay)
        await self._dialer.connect(relay_peer, (relay_address,), timeout_s=REQUEST_TIMEOUT_S)
        request = circuit_pb2.HopMessage(
            type=circuit_pb2.HopMessage.CONNECT, peer=circuit_pb2.PeerId(id=peer_id.to_bytes())
        )
        stream = await self._ask(relay_peer, request, f"could not join this node to peer {peer_id}")
        try:
            raw = _raw_connection(stream, address, initiator=True)
            await self._host.get_network().upgrade_outbound_raw_conn(raw, peer_id)
        except BaseException:
            await self._drop(stream)
            raise

    async def _ask(self, relay: str, request: Any, refusal: str) -> Any:
        try:
            stream = await self._host.new_stream(ID.from_base58(relay), [HOP])
        except StreamFailure as error:
            raise NetworkError(f"peer {relay} does not relay for others") from error
        try:
            await write_delimited_msg(stream, request)
            answer = await read_delimited_msg(stream, circuit_pb2.HopMessage)
        except BaseException:
            await self._drop(stream)
            raise
        if answer.status != circuit_pb2.OK:
            await self._drop(stream)
            reason = circuit_pb2.Status.Name(answer.status)
            raise NetworkError(f"relay {relay} {refusal}: {reason}")
        return stream

    async def _drop(self, stream: Any) -> None:
        with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
            await stream.reset()


class _AuthenticatedRelay(CircuitV2Protocol):
    """libp2p's relay, which reserves for the peer that asks instead of any peer that it names."""

    async def _handle_reserve(self, stream: Any, msg: Any) -> None:
        msg.peer.id = stream.muxed_conn.peer_id.to_bytes()
        await super()._handle_reserve(stream, msg)

    async def handle_incoming_connection(self, stream: Any, remote_peer_id: bytes) -> None:
        """Takes a connection that a relay brings; who is behind it is proven by its own Noise handshake."""
        address = Multiaddr(f"/p2p/{stream.muxed_conn.peer_id}/p2p-circuit")
        await self.host.upgrade_inbound_connection(_raw_connection(stream, address, initiator=False), address)


class _CircuitStream:
    """A stream to a relay as the bytes under another connection, whose messages must not be cut in half."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

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
        with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
            await self._stream.reset()

    def get_remote_address(self) -> None:
        return None


def _raw_connection(stream: Any, address: Multiaddr, *, initiator: bool) -> RawConnection:
    return RawConnection(
        stream=_CircuitStream(stream),
        initiator=initiator,
        connection_type=ConnectionType.RELAYED,
        addresses=[address],
    )
