"""Planner's stages and granted leases -> the ClusterPlan that the requester signs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from edgellm.types.plan import ClusterPlan, Endpoint, KvSharing, Member, StagePlan

MEMBERS_PER_SUBNET = 253


@dataclass(frozen=True, slots=True)
class Grant:
    """What a host granted for one stage."""

    peer: str
    lease: str
    devices: tuple[str, ...]
    certificate: bytes
    endpoints: tuple[Endpoint, ...]
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HeadDoor:
    peer: str
    certificate: bytes
    endpoints: tuple[Endpoint, ...]
    addresses: tuple[str, ...]


def assemble(
    stages: StagePlan,
    grants: Sequence[Grant],
    head: HeadDoor,
    *,
    cluster: str,
    token: str,
    issued_at: float,
    kv: KvSharing | None = None,
) -> ClusterPlan:
    """The plan of a cluster whose stage i is run by `grants[i]`.

    On the overlay the head has the address .1 of the cluster's subnet and the stages .2, .3, ... in pipeline order; the third
    byte comes from the cluster id, which only helps whoever reads logs of several clusters. On the direct fabric members have
    the address of their first endpoint.
    """
    request = stages.request
    subnet = IPv4Network(f"10.88.{int(cluster[:2], 16)}.0/24")

    def address(index: int, endpoints: tuple[Endpoint, ...]) -> str:
        return str(subnet[index + 1]) if request.fabric == "overlay" else endpoints[0].host

    members = [
        Member(
            peer=head.peer,
            address=address(0, head.endpoints),
            overlay_certificate=head.certificate,
            overlay_endpoints=head.endpoints,
            addresses=head.addresses,
        )
    ]
    for index, (stage, grant) in enumerate(zip(stages.stages, grants, strict=True)):
        members.append(
            Member(
                peer=grant.peer,
                address=address(index + 1, grant.endpoints),
                overlay_certificate=grant.certificate,
                overlay_endpoints=grant.endpoints,
                lease=grant.lease,
                first_layer=stage.first_layer,
                end_layer=stage.end_layer,
                devices=grant.devices,
                memory_bytes=stage.memory_bytes,
                addresses=grant.addresses,
            )
        )
    return ClusterPlan(
        cluster=cluster,
        digest=request.digest,
        tensor_parallel=stages.tensor_parallel,
        members=tuple(members),
        fabric=request.fabric,
        max_model_len=request.context,
        kv_cache_bytes=stages.kv_cache_bytes,
        subnet=str(subnet),
        cluster_token=token,
        issued_at=issued_at,
        kv=kv,
    )
