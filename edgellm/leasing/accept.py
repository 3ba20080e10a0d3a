"""Whether a host may act on a signed plan. Pure.

A plan is data, not code: the host checks that it was signed by the one who reserved, that the host's own part of it is
what was granted, and that every field is within bounds; then it builds its own command lines from it.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from edgellm.discovery.check import CLOCK_SKEW_S
from edgellm.kv.scope import ScopeKeys
from edgellm.leasing import COMMIT_S
from edgellm.leasing.codec import MAX_CONTEXT
from edgellm.leasing.lease import Lease
from edgellm.types.plan import ClusterPlan, KvSharing

OVERLAY_RANGE = IPv4Network("10.88.0.0/16")
MAX_AGE_S = CLOCK_SKEW_S + COMMIT_S
"""A plan is signed after its leases were granted, and each of those waits `COMMIT_S` for it."""


def objection(
    plan: ClusterPlan,
    *,
    signer: str,
    peer: str,
    lease: Lease,
    certificate: bytes,
    now: float,
    before: ClusterPlan | None = None,
) -> str | None:
    """Why a host with id `peer` must not run `plan` under `lease`, or None.

    `certificate` is the one the host made for this lease, `before` the plan by which it goes now, which this one would replace.
    A plan names the certificate and the lease's id, both new and random, and is newer than `before`: it fits one lease and is
    used once.
    """
    if signer != lease.requester:
        return "signed by another peer than the one that reserved"
    if plan.cluster != lease.cluster or plan.digest != lease.digest or plan.fabric != lease.fabric:
        return "names another cluster, model or fabric than was reserved"
    own = [member for member in plan.everyone[1:] if member.lease == lease.id]
    if len(own) != 1 or own[0].peer != peer:
        return "does not name this host and its lease exactly once"
    mine = own[0]
    reserved = (mine.first_layer, mine.end_layer) == (lease.first_layer, lease.end_layer)
    if before is None and mine not in plan.spares and not reserved:
        return "gives this host other layers than were reserved"
    if mine.devices != lease.devices or plan.tensor_parallel != len(lease.devices):
        return "gives this host other devices than were granted"
    if mine.memory_bytes > lease.memory_bytes or plan.kv_cache_bytes >= lease.memory_bytes:
        return "takes more memory than was granted"
    if mine.overlay_certificate != certificate:
        return "names another certificate than the host made"
    if plan.head.peer != signer:
        return "puts the head on another peer than the requester"
    if not -CLOCK_SKEW_S <= now - plan.issued_at <= MAX_AGE_S:
        return "was signed at another time than now"
    if plan.kv is not None and (against := _sharing_objection(plan.kv, signer)):
        return against
    if not 0 < plan.max_model_len <= MAX_CONTEXT:
        return "has an impossible context"
    if before is not None and (against := _amendment_objection(plan, before, lease.id)):
        return against
    return _address_objection(plan) or _layer_objection(plan)


def _amendment_objection(plan: ClusterPlan, before: ClusterPlan, lease: str) -> str | None:
    """What a later plan may not change, because the cell is made of it."""
    mine, was = plan.of_lease(lease), before.of_lease(lease)
    assert mine is not None
    assert was is not None
    if plan.issued_at <= before.issued_at:
        return "is older than the one that it would replace"
    if (
        mine.address != was.address
        or plan.head.address != before.head.address
        or plan.subnet != before.subnet
    ):
        return "gives this host or the head another address than before"
    if plan.head.overlay_certificate != before.head.overlay_certificate:
        return "gives the head another certificate than before"
    if plan.cluster_token != before.cluster_token:
        return "has another token than before"
    if (plan.kv is None) != (before.kv is None) or (
        plan.kv is not None and before.kv is not None and plan.kv.secret != before.kv.secret
    ):
        return "shares KV otherwise than before"
    return None


def _sharing_objection(kv: KvSharing, signer: str) -> str | None:
    if kv.tracker != signer:
        return "names another tracker of KV records than the requester"
    # Whoever knows no more than a scope's id must not get at what a host knows of it.
    if ScopeKeys.derive(kv.secret).scope_id != kv.scope_id:
        return "shares KV in a scope that is not its secret's"
    return None


def _address_objection(plan: ClusterPlan) -> str | None:
    addresses = [member.address for member in plan.everyone]
    if len(set(addresses)) != len(addresses) and plan.fabric == "overlay":
        return "gives two members one address"
    try:
        parsed = [IPv4Address(address) for address in addresses]
        subnet = IPv4Network(plan.subnet) if plan.fabric == "overlay" else None
    except (AddressValueError, NetmaskValueError, ValueError):
        return "has an address that is none"
    if subnet is not None and str(subnet) != plan.subnet:
        return "writes its subnet in an unusual way"
    if subnet is not None and (
        not subnet.subnet_of(OVERLAY_RANGE) or any(address not in subnet for address in parsed)
    ):
        return "uses addresses outside the overlay's range"
    return None


def _layer_objection(plan: ClusterPlan) -> str | None:
    if any(member.first_layer != member.end_layer for member in plan.spares):
        return "gives layers to a spare"
    expected = 0
    for member in plan.workers:
        if member.first_layer != expected or member.end_layer <= member.first_layer:
            return "does not give every layer to exactly one stage"
        expected = member.end_layer
    return None
