"""Planner's stages and granted leases -> the ClusterPlan that the requester signs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network

from edgellm.leasing.codec import plan_addresses
from edgellm.types.plan import ClusterPlan, Endpoint, KvSharing, Member, PlanRequest, StagePlan

HEAD_NUMBER = 1
FIRST_NUMBER, LAST_NUMBER = 2, 250


@dataclass(frozen=True, slots=True)
class Grant:
    """What a host granted."""

    peer: str
    lease: str
    devices: tuple[str, ...]
    memory_bytes: int
    """On each device."""
    certificate: bytes
    endpoints: tuple[Endpoint, ...]
    addresses: tuple[str, ...]
    number: int
    """Of its address in the cluster's subnet: its own as long as the lease lasts, and not soon another's, for a dead member may
    still be listed in the engine's books."""


@dataclass(frozen=True, slots=True)
class HeadDoor:
    peer: str
    certificate: bytes
    endpoints: tuple[Endpoint, ...]
    addresses: tuple[str, ...]


def next_number(last: int, in_use: Sequence[int]) -> int:
    """The next number of a subnet's addresses that no member has, after the one that was given out last (0: none was)."""
    count = LAST_NUMBER - FIRST_NUMBER + 1
    for offset in range(count):
        number = FIRST_NUMBER + (max(last, FIRST_NUMBER - 1) + 1 - FIRST_NUMBER + offset) % count
        if number not in in_use:
            return number
    raise ValueError(f"a cluster has at most {count} members")


def head_alone(
    request: PlanRequest,
    head: HeadDoor,
    *,
    cluster: str,
    token: str,
    issued_at: float,
    kv: KvSharing | None = None,
    standby: bool = False,
) -> ClusterPlan:
    """The plan of a cluster that nobody has joined yet.

    On the overlay the head has the address .1 of the cluster's subnet; the third byte comes from the cluster id, which only
    helps whoever reads logs of several clusters. On the direct fabric it has the address of its first endpoint.
    """
    subnet = IPv4Network(f"10.88.{int(cluster[:2], 16)}.0/24")
    member = Member(
        peer=head.peer,
        address=_address(request.fabric, subnet, HEAD_NUMBER, head.endpoints),
        overlay_certificate=head.certificate,
        overlay_endpoints=head.endpoints,
        addresses=plan_addresses(head.addresses),
    )
    return ClusterPlan(
        cluster=cluster,
        digest=request.digest,
        tensor_parallel=1,
        members=(member,),
        fabric=request.fabric,
        max_model_len=request.context,
        kv_cache_bytes=0,
        subnet=str(subnet),
        cluster_token=token,
        issued_at=issued_at,
        kv=kv,
        standby=standby,
    )


def assemble(
    alone: ClusterPlan,
    stages: StagePlan,
    grants: Sequence[Grant],
    *,
    issued_at: float,
    spares: Sequence[Grant] = (),
) -> ClusterPlan:
    """The plan of the cluster of `head_alone`, whose stage i is now run by `grants[i]`.

    Members have the address of their number on the overlay, that of their first endpoint on the direct fabric.
    """
    subnet = IPv4Network(alone.subnet)
    workers = tuple(
        replace(
            _member(alone.fabric, subnet, grant),
            first_layer=stage.first_layer,
            end_layer=stage.end_layer,
            memory_bytes=stage.memory_bytes,
        )
        for stage, grant in zip(stages.stages, grants, strict=True)
    )
    return replace(
        alone,
        tensor_parallel=stages.tensor_parallel,
        members=(alone.head, *workers),
        kv_cache_bytes=stages.kv_cache_bytes,
        issued_at=issued_at,
        spares=tuple(_member(alone.fabric, subnet, grant) for grant in spares),
    )


def _member(fabric: str, subnet: IPv4Network, grant: Grant) -> Member:
    return Member(
        peer=grant.peer,
        address=_address(fabric, subnet, grant.number, grant.endpoints),
        overlay_certificate=grant.certificate,
        overlay_endpoints=grant.endpoints,
        lease=grant.lease,
        devices=grant.devices,
        memory_bytes=grant.memory_bytes,
        addresses=plan_addresses(grant.addresses),
    )


def _address(fabric: str, subnet: IPv4Network, number: int, endpoints: tuple[Endpoint, ...]) -> str:
    return str(subnet[number]) if fabric == "overlay" else endpoints[0].host
