"""Asking a peer how it sees this node, by libp2p's identify."""

from __future__ import annotations

from typing import Any

import trio
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.id import ID
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from edgellm.p2p.addresses import ip_endpoint
from edgellm.p2p.connections import LISTENING_PORT, direct_connections, remote_host
from edgellm.p2p.reachability import Seen

IDENTIFY_TIMEOUT_S = 3.0
_MAX_BYTES = 64 * 1024


async def ask_how_seen(host: Any, peer_id: ID) -> Seen | None:
    """How a directly connected peer sees this node; None when it does not say."""
    connections = direct_connections(host.get_network(), peer_id)
    if not connections:
        return None
    # The connection that libp2p will take for the question.
    connection = host.get_network()._select_connection(connections, peer_id)
    try:
        with trio.fail_after(IDENTIFY_TIMEOUT_S):
            stream = await host.new_stream(peer_id, [IDENTIFY])
            message = Identify()
            message.ParseFromString(await read_varint_prefixed_bytes_limited(stream, _MAX_BYTES))
            await stream.close()
        endpoint = ip_endpoint(str(Multiaddr(message.observed_addr)))
    except Exception:  # noqa: BLE001 - whatever a peer says, it is a hint at most
        return None
    if endpoint is None:
        return None
    listening = connection.direction == "inbound" or getattr(connection, LISTENING_PORT, False)
    return Seen(
        str(peer_id),
        remote_host(connection),
        endpoint[0],
        endpoint[1] if listening else 0,
        tuple(message.protocols),
    )
