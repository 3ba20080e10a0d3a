"""AutoNAT v1: peers try to connect to each other when asked, and say whether they got through.

Both sides of py-libp2p 0.8.1's own are of no use: its server takes the connection on which it is asked for success.
This server connects beside libp2p's connections, checks by the Noise handshake that it is the right peer, and hangs up.

Spec: https://github.com/libp2p/specs/blob/master/autonat/autonat-v1.md
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio
from libp2p.host.autonat.autonat import AUTONAT_PROTOCOL_ID as AUTONAT
from libp2p.host.autonat.pb.autonat_pb2 import Message
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from edgellm.p2p.addresses import ip_endpoint, written
from edgellm.p2p.connections import is_relayed, remote_host

__all__ = ["AUTONAT", "DialBackServer", "ask_to_dial_back"]

log = logging.getLogger(__name__)

DIAL_TIMEOUT_S = 3.0
ASK_TIMEOUT_S = 8.0
REST_S = 5.0
"""Between two questions from one IP address."""
_MAX_ADDRESSES = 4
_MAX_DIALS = 8
_MAX_BYTES = 16 * 1024
_MAX_REMEMBERED = 4096


async def ask_to_dial_back(host: Any, peer_id: ID, addresses: Sequence[str]) -> str | None:
    """Asks a peer to connect to this node at `addresses`: the one at which it got through, "" for none.

    None when it cannot or does not want to try.
    """
    own = host.get_id()
    asked = [Multiaddr(f"{address}/p2p/{own}").to_bytes() for address in addresses]
    question = Message(
        type=Message.DIAL, dial=Message.Dial(peer=Message.PeerInfo(id=own.to_bytes(), addrs=asked))
    )
    try:
        with trio.fail_after(ASK_TIMEOUT_S):
            stream = await host.new_stream(peer_id, [AUTONAT])
            await stream.write(encode_varint_prefixed(question.SerializeToString()))
            answer = Message()
            answer.ParseFromString(await read_varint_prefixed_bytes_limited(stream, _MAX_BYTES))
            await stream.close()
        if answer.dialResponse.status == Message.E_DIAL_ERROR:
            return ""
        if answer.dialResponse.status != Message.OK:
            return None
        reached = ip_endpoint(str(Multiaddr(answer.dialResponse.addr)))
    except Exception as error:  # noqa: BLE001 - a peer that cannot be asked is none that answers
        log.debug("peer %s was asked to dial back: %r", peer_id, error)
        return None
    # What was not asked about is no answer.
    return next((address for address in addresses if ip_endpoint(address) == reached), None)


class DialBackServer:
    """Tries to connect to those who ask, at their own IP address only, each once in a while."""

    def __init__(self, host: Any) -> None:
        self._host = host
        self._dials = trio.CapacityLimiter(_MAX_DIALS)
        self._asked: dict[str, float] = {}
        host.set_stream_handler(AUTONAT, self._serve)

    async def _serve(self, stream: Any) -> None:
        with suppress(Exception), trio.move_on_after(ASK_TIMEOUT_S):
            question = Message()
            question.ParseFromString(await read_varint_prefixed_bytes_limited(stream, _MAX_BYTES))
            status, reached = await self._try(stream.muxed_conn, question)
            answer = Message(
                type=Message.DIAL_RESPONSE, dialResponse=Message.DialResponse(status=status, addr=reached)
            )
            await stream.write(encode_varint_prefixed(answer.SerializeToString()))
            await stream.close()
            return
        with suppress(Exception), trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
            await stream.reset()

    async def _try(self, connection: Any, question: Any) -> tuple[Any, bytes]:
        if question.type != Message.DIAL or is_relayed(connection):
            return Message.E_BAD_REQUEST, b""
        source = remote_host(connection)
        addresses = _dialable(question.dial.peer.addrs, source)
        if not source or not addresses or not self._may_ask(source):
            return Message.E_DIAL_REFUSED, b""
        reached: list[str] = []
        async with trio.open_nursery() as nursery:

            async def dial(address: str) -> None:
                if await self._reaches(address, connection.peer_id):
                    reached.append(address)
                    nursery.cancel_scope.cancel()

            for address in addresses:
                nursery.start_soon(dial, address)
        return (Message.OK, Multiaddr(reached[0]).to_bytes()) if reached else (Message.E_DIAL_ERROR, b"")

    def _may_ask(self, source: str) -> bool:
        now = trio.current_time()
        if now < self._asked.get(source, -math.inf) + REST_S or not self._dials.available_tokens:
            return False
        if len(self._asked) >= _MAX_REMEMBERED:
            self._asked.clear()
        self._asked[source] = now
        return True

    async def _reaches(self, address: str, peer_id: ID) -> bool:
        swarm = self._host.get_network()
        multiaddr = Multiaddr(address)
        async with self._dials:
            with trio.move_on_after(DIAL_TIMEOUT_S):
                try:
                    raw = await swarm.transport_manager.transport_for_dialing(multiaddr).dial(multiaddr)
                except Exception:  # noqa: BLE001 - any failure is the answer
                    return False
                try:
                    await swarm.upgrader.upgrade_security(raw, True, peer_id)
                    return True
                except Exception:  # noqa: BLE001 - somebody else answers there
                    return False
                finally:
                    with suppress(Exception), trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                        await raw.close()
        return False


def _dialable(told: Sequence[bytes], source: str) -> list[str]:
    """Of what a peer told, the TCP addresses at its own IP address, so that nobody has us dial others."""
    addresses = []
    for text in written(Multiaddr(raw) for raw in told[:64]):
        endpoint = ip_endpoint(text)
        if endpoint is not None and endpoint[0] == source and endpoint[1]:
            addresses.append(text.partition("/p2p/")[0])
    return list(dict.fromkeys(addresses))[:_MAX_ADDRESSES]
