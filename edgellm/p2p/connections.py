"""What is to be known of libp2p's connections: direct or through a relay, and between which addresses."""

from __future__ import annotations

from typing import Any

from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID

LISTENING_PORT = "edgellm_from_listening_port"
"""The mark on connections that were dialled from the port on which this node listens."""


def is_relayed(connection: Any) -> bool:
    """Whether a connection (libp2p's `SwarmConn` or what is under it) goes through a relay."""
    return bool(connection.get_connection_type() == ConnectionType.RELAYED)


def direct_connections(swarm: Any, peer_id: ID) -> list[Any]:
    """The open connections to a peer that go through no relay."""
    return [each for each in _open(swarm, peer_id) if not is_relayed(each)]


def relay_of(swarm: Any, peer_id: ID) -> str:
    """The peer id of the relay through which alone `peer_id` is connected; "" where it is connected directly or not at all."""
    connections = _open(swarm, peer_id)
    if not connections or not all(is_relayed(each) for each in connections):
        return ""
    texts = [str(address) for address in connections[0].get_transport_addresses()]
    return next((text.partition("/p2p-circuit")[0].rpartition("/p2p/")[2] for text in texts), "")


def remote_host(connection: Any) -> str:
    """The IP address at the other end; "" where that is not known."""
    muxed = getattr(connection, "muxed_conn", connection)
    remote = muxed.get_remote_address()
    return str(remote[0]).removeprefix("::ffff:") if remote else ""


def _open(swarm: Any, peer_id: ID) -> list[Any]:
    return [
        connection
        for connection in swarm.get_connections(peer_id)
        if not connection.is_closed and connection.muxed_conn.is_established
    ]
