"""Whether a host may act on a signed plan. Pure.

A plan is data, not code: the host checks that it was signed by the one who reserved, that the host's own part of it is
what was granted, and that every field is within bounds; then it builds its own command lines from it.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from edgellm.kv.scope import ScopeKeys
from edgellm.leasing.lease import Lease
from edgellm.types.plan import ClusterPlan, KvSharing

OVERLAY_RANGE = IPv4Network("10.88.0.0/16")
MAX_CONTEXT = 1 << 24


def objection(plan: ClusterPlan, *, signer: str, peer: str, lease: Lease, certificate: bytes) -> str | None:
    """Why a host with id `peer` must not run `plan` under `lease`, or None.

    `certificate` is the one the host made for this lease.
    """
    if signer != lease.requester:
        return "signed by another peer than the one that reserved"
    if plan.cluster != lease.cluster or plan.digest != lease.digest or plan.fabric != lease.fabric:
        return "names another cluster, model or fabric than was reserved"
    own = [member for member in plan.workers if member.peer == peer and member.lease == lease.id]
    if len(own) != 1:
        return "does not name this host and its lease exactly once"
    mine = own[0]
    if (mine.first_layer, mine.end_layer) != (lease.first_layer, lease.end_layer):
        return "gives this host other layers than were reserved"
    if mine.devices != lease.devices or plan.tensor_parallel != len(lease.devices):
        return "gives this host other devices than were granted"
    if mine.memory_bytes != lease.memory_bytes or plan.kv_cache_bytes >= lease.memory_bytes:
        return "takes more memory than was granted"
    if mine.overlay_certificate != certificate:
        return "names another certificate than the host made"
    if plan.head.peer != signer:
        return "puts the head on another peer than the requester"
    if plan.kv is not None and (against := _sharing_objection(plan.kv, signer)):
        return against
    if not 0 < plan.max_model_len <= MAX_CONTEXT:
        return "has an impossible context"
    return _address_objection(plan) or _layer_objection(plan)


def _sharing_objection(kv: KvSharing, signer: str) -> str | None:
    if kv.tracker != signer:
        return "names another tracker of KV records than the requester"
    # Whoever knows no more than a scope's id must not get at what a host knows of it.
    if ScopeKeys.derive(kv.secret).scope_id != kv.scope_id:
        return "shares KV in a scope that is not its secret's"
    return None


def _address_objection(plan: ClusterPlan) -> str | None:
    addresses = [member.address for member in plan.members]
    if len(set(addresses)) != len(addresses) and plan.fabric == "overlay":
        return "gives two members one address"
    try:
        parsed = [IPv4Address(address) for address in addresses]
        subnet = IPv4Network(plan.subnet) if plan.fabric == "overlay" else None
    except (AddressValueError, NetmaskValueError, ValueError):
        return "has an address that is none"
    if subnet is not None and (
        not subnet.subnet_of(OVERLAY_RANGE) or any(address not in subnet for address in parsed)
    ):
        return "uses addresses outside the overlay's range"
    return None


def _layer_objection(plan: ClusterPlan) -> str | None:
    expected = 0
    for member in plan.workers:
        if member.first_layer != expected or member.end_layer <= member.first_layer:
            return "does not give every layer to exactly one stage"
        expected = member.end_layer
    return None
