"""Addresses in the overlay: 10.88.C.N, C for the cluster, N for the member. Pure."""

from __future__ import annotations

import hashlib
import ipaddress

from edgellm.errors import ProtocolViolation

OVERLAY_RANGE = ipaddress.IPv4Network("10.88.0.0/16")
HEAD_NUMBER = 1
MAX_MEMBERS = 253


def cluster_number(cluster_id: str) -> int:
    """The third byte of a cluster's addresses, 0 to 255. Two clusters may share it: their networks never meet."""
    return hashlib.sha256(cluster_id.encode()).digest()[0]


def member_addresses(cluster: int, members: int) -> tuple[str, ...]:
    """The addresses of `members` members, the head (.1) first, then the others in the plan's order from .2."""
    if not 1 <= members <= MAX_MEMBERS:
        raise ValueError(f"A cluster has 1 to {MAX_MEMBERS} members, not {members}")
    if not 0 <= cluster <= 255:
        raise ValueError(f"A cluster's number is 0 to 255, not {cluster}")
    first = int(OVERLAY_RANGE.network_address) + 256 * cluster + HEAD_NUMBER
    return tuple(str(ipaddress.IPv4Address(first + index)) for index in range(members))


def check_member_address(address: str) -> str:
    """`address` in its normal form. Raises `ProtocolViolation` where it cannot be a member's."""
    try:
        parsed = ipaddress.IPv4Address(address)
    except ValueError as error:
        raise ProtocolViolation(f"{address!r} is not an IPv4 address") from error
    if parsed not in OVERLAY_RANGE or not HEAD_NUMBER <= parsed.packed[3] <= MAX_MEMBERS:
        raise ProtocolViolation(f"{address} is not an address of an overlay member")
    return str(parsed)


def check_members(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """All of one cluster, each once, the head among them; normal forms. Raises `ProtocolViolation`."""
    normal = tuple(check_member_address(address) for address in addresses)
    if len(set(normal)) != len(normal):
        raise ProtocolViolation("Two members of a plan have the same overlay address")
    networks = {address.rpartition(".")[0] for address in normal}
    if len(networks) != 1 or f"{networks.copy().pop()}.{HEAD_NUMBER}" not in normal:
        raise ProtocolViolation("The members of a plan do not have the addresses of one cluster with a head")
    return normal
