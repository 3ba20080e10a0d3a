"""Serving as a relay: the hop side of circuit relay v2, within the limits of a `Ledger`.

py-libp2p 0.8.1 has one too, which keeps one circuit a peer in its books (the end of one cuts others), lets everybody
reserve for anybody and counts nothing under addresses.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from typing import Any

import trio
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID as HOP
from libp2p.relay.circuit_v2.protocol import STOP_PROTOCOL_ID as STOP
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from multiaddr import Multiaddr

from edgellm.p2p.connections import direct_connections, is_relayed, remote_host
from edgellm.p2p.limits import origin
from edgellm.p2p.relay_limits import RESERVATION_S, Circuit, Ledger, Refusal

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10.0
_CHUNK_BYTES = 64 * 1024
_STATUS = {
    Refusal.RESERVATIONS: circuit_pb2.RESERVATION_REFUSED,
    Refusal.NO_RESERVATION: circuit_pb2.NO_RESERVATION,
    Refusal.CIRCUITS: circuit_pb2.RESOURCE_LIMIT_EXCEEDED,
    Refusal.BYTES: circuit_pb2.RESOURCE_LIMIT_EXCEEDED,
}


class RelayServer:
    """Answers peers that want a place or a circuit."""

    def __init__(self, host: Any, ledger: Ledger) -> None:
        self._host = host
        self._ledger = ledger
        host.set_stream_handler(HOP, self._serve)

    async def _serve(self, stream: Any) -> None:
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                asked = await read_delimited_msg(stream, circuit_pb2.HopMessage)
            # A circuit over a circuit would hide who uses it.
            if is_relayed(stream.muxed_conn):
                await _answer(stream, circuit_pb2.PERMISSION_DENIED)
            elif asked.type == circuit_pb2.HopMessage.RESERVE:
                await self._reserve(stream)
            elif asked.type == circuit_pb2.HopMessage.CONNECT:
                await self._connect(stream, asked)
            else:
                await _answer(stream, circuit_pb2.UNEXPECTED_MESSAGE)
        except Exception as error:  # noqa: BLE001 - whatever a peer sends ends its own stream
            log.debug("relay: a stream of peer %s ended: %r", stream.muxed_conn.peer_id, error)
            await _reset(stream)

    async def _reserve(self, stream: Any) -> None:
        peer, address = str(stream.muxed_conn.peer_id), _address(stream.muxed_conn)
        swarm = self._host.get_network()
        self._ledger.forget(lambda one: not direct_connections(swarm, ID.from_base58(one)))
        refusal = self._ledger.reserve(peer, address, trio.current_time())
        if refusal is not None:
            await _answer(stream, _STATUS[refusal])
            return
        allowance = self._ledger.allowance(peer)
        own = [address for address in self._host.get_addrs() if "/p2p-circuit" not in str(address)]
        answer = circuit_pb2.HopMessage(
            type=circuit_pb2.HopMessage.STATUS,
            status=circuit_pb2.OK,
            reservation=circuit_pb2.Reservation(
                expire=int(time.time() + RESERVATION_S), addrs=[Multiaddr(str(one)).to_bytes() for one in own]
            ),
            limit=_limit(allowance.circuit_s, allowance.circuit_bytes),
        )
        with trio.fail_after(REQUEST_TIMEOUT_S):
            await write_delimited_msg(stream, answer)
            await stream.close()

    async def _connect(self, stream: Any, asked: Any) -> None:
        source, target = stream.muxed_conn.peer_id, ID(asked.peer.id)
        opened = self._ledger.open(str(source), _address(stream.muxed_conn), str(target), trio.current_time())
        if isinstance(opened, Refusal):
            await _answer(stream, _STATUS[opened])
            return
        onward = None
        try:
            onward = await self._open_onward(source, target, opened)
            if onward is None:
                await _answer(stream, circuit_pb2.CONNECTION_FAILED)
                return
            limit = _limit(opened.circuit_s, opened.bytes_left)
            ok = circuit_pb2.HopMessage(
                type=circuit_pb2.HopMessage.STATUS, status=circuit_pb2.OK, limit=limit
            )
            with trio.fail_after(REQUEST_TIMEOUT_S):
                await write_delimited_msg(stream, ok)
            await self._carry(stream, onward, opened)
        finally:
            self._ledger.close(opened)
            for each in (stream, onward):
                if each is not None:
                    await _reset(each)

    async def _open_onward(self, source: ID, target: ID, circuit: Circuit) -> Any:
        """A stream to the target, which took the circuit; None when it does not."""
        # Nobody is dialled for a stranger: who has a place keeps a connection open.
        if not direct_connections(self._host.get_network(), target):
            return None
        onward = None
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                onward = await self._host.new_stream(target, [STOP])
                stop = circuit_pb2.StopMessage(
                    type=circuit_pb2.StopMessage.CONNECT,
                    peer=circuit_pb2.PeerId(id=source.to_bytes()),
                    limit=_limit(circuit.circuit_s, circuit.bytes_left),
                )
                await write_delimited_msg(onward, stop)
                answer = await read_delimited_msg(onward, circuit_pb2.StopMessage)
            if answer.status == circuit_pb2.OK:
                return onward
        except Exception as error:  # noqa: BLE001 - a target that cannot be reached is an answer
            log.debug("relay: peer %s takes no circuit: %r", target, error)
        if onward is not None:
            await _reset(onward)
        return None

    async def _carry(self, one: Any, other: Any, circuit: Circuit) -> None:
        """Moves bytes both ways until an end closes or an allowance is used up."""
        with trio.move_on_after(circuit.circuit_s if math.isfinite(circuit.circuit_s) else math.inf):
            async with trio.open_nursery() as nursery:

                async def move(source: Any, sink: Any) -> None:
                    with suppress(StreamEOF):
                        while data := await source.read(_CHUNK_BYTES):
                            if not self._ledger.charge(circuit, len(data), trio.current_time()):
                                log.info(
                                    "relay: peers %s and %s have used up theirs",
                                    circuit.source,
                                    circuit.target,
                                )
                                break
                            await sink.write(data)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(move, one, other)
                nursery.start_soon(move, other, one)


def _address(connection: Any) -> str:
    """Under which a peer counts besides its id: of IPv6 the network that one customer has."""
    host = remote_host(connection)
    return origin(host).address or host


def _limit(circuit_s: float, size: int) -> Any:
    return circuit_pb2.Limit(duration=min(int(circuit_s), (1 << 31) - 1), data=size)


async def _answer(stream: Any, status: Any) -> None:
    with trio.fail_after(REQUEST_TIMEOUT_S):
        await write_delimited_msg(
            stream, circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.STATUS, status=status)
        )
        await stream.close()


async def _reset(stream: Any) -> None:
    with suppress(Exception), trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
        await stream.reset()
