"""What a requester asks of one host, and the same on the wire. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from edgellm.discovery.codec import engine_from_wire, engine_to_wire
from edgellm.errors import ProtocolViolation
from edgellm.types.advert import Engine
from edgellm.types.plan import Endpoint
from edgellm.wire import wire_pb2

MAX_ENDPOINTS = 16
MAX_CERTIFICATE_BYTES = 4096
_BROADCAST = IPv4Address("255.255.255.255")
_CLUSTER = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Terms:
    cluster: str
    """128 random bits in hex, chosen by the requester."""
    digest: str
    first_layer: int
    end_layer: int
    devices: int
    memory_bytes: int
    """On each device."""
    fabric: str
    engine: Engine


def terms_to_wire(terms: Terms) -> wire_pb2.Reserve:
    return wire_pb2.Reserve(
        cluster=terms.cluster,
        model_digest=bytes.fromhex(terms.digest),
        first_layer=terms.first_layer,
        end_layer=terms.end_layer,
        devices=terms.devices,
        memory_bytes=terms.memory_bytes,
        fabric=terms.fabric,
        engine=engine_to_wire(terms.engine),
    )


def terms_from_wire(message: wire_pb2.Reserve) -> Terms:
    """Raises ProtocolViolation when a field is not of its form; whether it can be granted is the book's matter."""
    if not _CLUSTER.fullmatch(message.cluster):
        raise ProtocolViolation("a cluster id that is not 32 hexadecimal digits")
    if len(message.model_digest) != 32:
        raise ProtocolViolation(f"a model digest of {len(message.model_digest)} bytes; SHA-256 has 32")
    if message.fabric not in ("overlay", "direct"):
        raise ProtocolViolation("an unknown fabric")
    return Terms(
        cluster=message.cluster,
        digest=message.model_digest.hex(),
        first_layer=message.first_layer,
        end_layer=message.end_layer,
        devices=message.devices,
        memory_bytes=message.memory_bytes,
        fabric=message.fabric,
        engine=engine_from_wire(message.engine),
    )


def endpoints_to_wire(endpoints: tuple[Endpoint, ...]) -> list[wire_pb2.Endpoint]:
    return [wire_pb2.Endpoint(host=endpoint.host, port=endpoint.port) for endpoint in endpoints]


def endpoints_from_wire(messages: list[wire_pb2.Endpoint]) -> tuple[Endpoint, ...]:
    """Raises ProtocolViolation for too many endpoints, or one that cannot be an address and a TCP port.

    Nor may it be one that no member has and whoever dials it would be made to talk to: a cloud's metadata service, a group.
    """
    if len(messages) > MAX_ENDPOINTS:
        raise ProtocolViolation(f"{len(messages)} overlay endpoints; the limit is {MAX_ENDPOINTS}")
    for message in messages:
        try:
            host = ip_address(message.host)  # a name would be looked up by whoever dials
        except ValueError:
            host = None
        if host is None or not 0 < message.port < 65536 or "%" in message.host:
            raise ProtocolViolation("an overlay endpoint that is no IP address and port")
        if isinstance(host, IPv6Address) and (host.ipv4_mapped or host.sixtofour or host.teredo):
            raise ProtocolViolation("an overlay endpoint that wraps another address")
        if host.is_link_local or host.is_multicast or host.is_unspecified or host == _BROADCAST:
            raise ProtocolViolation("an overlay endpoint that is no machine's address")
    return tuple(Endpoint(message.host, message.port) for message in messages)


def certificate_from_wire(certificate: bytes) -> bytes:
    if len(certificate) > MAX_CERTIFICATE_BYTES:
        raise ProtocolViolation(f"a certificate of {len(certificate)} bytes")
    return certificate
