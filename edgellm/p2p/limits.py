"""What one peer, one address and all of them together may take of a node: connections, streams, memory. Pure.

Identities are free, so nothing is bounded by peer id alone: connections count by the address they come from as well, and
each kind has a total.

py-libp2p 0.8.1's resource manager stays off. It can be given larger numbers, but not these limits: its subnets are those
that were listed beforehand, its rate is for peers that have proven an id, it does not bound what has not ended its
handshake, and when its count is reached it lowers its own limits.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from edgellm.p2p.pace import Rate

_CONNECTING = Rate(burst=80, per_s=10)
_ASKING = Rate(burst=200, per_s=50)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Inbound connections. The rest of `MAX_CONNECTIONS` is left for those that this node opens itself."""

    inbound: int = 384
    per_peer: int = 8
    per_address: int = 64
    """An IPv4 address, or the /64 that one IPv6 customer has."""
    per_network: int = 128
    """An IPv4 /24 or IPv6 /48 of the internet; a private network is one's own."""
    pending: int = 96
    """Connections that have not proven an identity yet."""
    pending_per_address: int = 16
    handshake_s: float = 10.0
    """What a connection has for TCP, Noise and Yamux together, from the moment it is accepted."""
    rate_per_address: Rate = _CONNECTING


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Inbound streams of one protocol at once, and how often a peer may open one."""

    per_peer: int = 64
    total: int = 512
    rate: Rate = _ASKING


MAX_CONNECTIONS = 512
MAX_INBOUND_STREAMS_PER_PEER = 1024
MAX_INBOUND_STREAMS = 8192

_QUESTION = StreamLimits(per_peer=16, total=256, rate=Rate(burst=60, per_s=10))
_BY_PROTOCOL = {
    "/edgellm/advert/1": _QUESTION,
    "/edgellm/model/1": _QUESTION,
    # A lease holds devices: whoever asks again and again keeps others from them.
    "/edgellm/lease/1": StreamLimits(per_peer=16, total=256, rate=Rate(burst=20, per_s=1)),
    # Every TCP connection of an engine is one, where members cannot reach each other directly.
    "/edgellm/overlay/1": StreamLimits(per_peer=512, total=2048, rate=Rate(burst=1000, per_s=200)),
    # Half of the answers that a holder gives at once (`edgellm.blocks.exchange`).
    "/edgellm/blocks/1": StreamLimits(per_peer=16, total=64, rate=Rate(burst=400, per_s=100)),
    # IPFS peers of others open a stream for each message.
    "/ipfs/bitswap/1.2.0": StreamLimits(per_peer=64, total=512, rate=Rate(burst=2000, per_s=500)),
}
_OTHERS = StreamLimits()


def stream_limits(protocol: str) -> StreamLimits:
    """What holds for `protocol`."""
    return _BY_PROTOCOL.get(protocol, _OTHERS)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection comes from, as far as limits care."""

    address: str
    """Empty where addresses are not counted: loopback, which is this machine's own users, and what has none."""
    network: str
    """Empty where networks are not counted."""


def origin(host: str) -> Origin:
    """The origin of a connection from the IP address `host`."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return Origin("", "")
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return Origin("", "")
    address_bits, network_bits = (32, 24) if ip.version == 4 else (64, 48)
    address = str(ipaddress.ip_network(f"{ip}/{address_bits}", strict=False))
    network = str(ipaddress.ip_network(f"{ip}/{network_bits}", strict=False)) if ip.is_global else ""
    return Origin(address, network)
