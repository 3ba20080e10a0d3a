"""One question of the DHT to one peer: who announced a key, and who is closer to it."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.utils import maybe_consume_signed_record
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from edgellm.p2p.lookup import MAX_CLOSER, Answer
from edgellm.p2p.varint import encode_varint

log = logging.getLogger(__name__)

ADDRESS_TTL_S = 3600
MAX_ANSWER_BYTES = 512 * 1024
_CLOSE_S = 1.0


async def get_providers(
    host: Any, peer: ID, key: bytes, protocol: TProtocol, *, timeout_s: float
) -> Answer[ID, PeerInfo] | None:
    """What `peer` knows of `key`; None where it does not answer within `timeout_s` or sends what is no answer.

    The addresses of closer peers are kept, so that they can be asked next.
    """
    with trio.move_on_after(timeout_s):
        try:
            stream = await host.new_stream(peer, [protocol])
            try:
                record, _ = env_to_send_in_RPC(host)
                question = Message(type=Message.MessageType.GET_PROVIDERS, key=key, senderRecord=record)
                encoded = question.SerializeToString()
                await stream.write(encode_varint(len(encoded)) + encoded)
                said = Message.FromString(await read_varint_prefixed_bytes_limited(stream, MAX_ANSWER_BYTES))
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
                    await stream.close()
            if said.type != Message.MessageType.GET_PROVIDERS or not maybe_consume_signed_record(
                said, host, peer
            ):
                return None
            found = [info for entry in said.providerPeers if (info := _known(host, entry)) is not None]
            closer = [
                info for entry in said.closerPeers[:MAX_CLOSER] if (info := _known(host, entry)) is not None
            ]
        except Exception as error:  # noqa: BLE001 - whatever one peer does ends one question
            log.debug("peer %s does not say who announced a key: %r", peer, error)
            return None
        own = host.get_id()
        near = [info for info in closer if info.peer_id != own]
        for info in near:
            if info.addrs:
                host.get_peerstore().add_addrs(info.peer_id, info.addrs, ADDRESS_TTL_S)
        return Answer(found, [info.peer_id for info in near])
    return None


def distance(peer: ID, key: bytes) -> int:
    """How far `peer` is from `key` in the space of the DHT."""
    near, far = hashlib.sha256(peer.to_bytes()).digest(), hashlib.sha256(key).digest()
    return int.from_bytes(near, "big") ^ int.from_bytes(far, "big")


def _known(host: Any, entry: Any) -> PeerInfo | None:
    if not entry.id or not maybe_consume_signed_record(entry, host):
        return None
    addresses = []
    for raw in entry.addrs:
        try:
            addresses.append(Multiaddr(raw))
        except Exception as error:  # noqa: BLE001 - an address of a kind that this library does not know
            log.debug("an address that is none: %r", error)
    return PeerInfo(ID(entry.id), addresses)
