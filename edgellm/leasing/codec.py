"""The ClusterPlan and the signed envelope that carries it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from edgellm.errors import ProtocolViolation
from edgellm.leasing.terms import certificate_from_wire, endpoints_from_wire, endpoints_to_wire
from edgellm.p2p.envelope import open_envelope, seal
from edgellm.p2p.identity import Identity
from edgellm.types.plan import ClusterPlan, KvSharing, Member
from edgellm.wire import wire_pb2

DOMAIN = "edgellm-plan-v1"
PAYLOAD_TYPE = b"/edgellm/plan"
MAX_PLAN_BYTES = 512 * 1024
MAX_MEMBERS = 64
KV_SCOPES = ("session", "swarm", "public")
KV_SECRET_BYTES = 32
KV_ID_BYTES = 16
MAX_BYTES = 1 << 50
"""No device has so much memory."""
MAX_LAYERS = 4096
MAX_DEVICES = 64
MAX_CONTEXT = 1 << 24
MAX_ADDRESSES = 16
MAX_UNIX_MS = 1 << 43  # the year 2248
_TOKEN = re.compile(r"[0-9a-f]{32,128}")
_CLUSTER = re.compile(r"[0-9a-f]{32}")
_IPV4 = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
_SUBNET = re.compile(r"[0-9.]{7,15}/[0-9]{1,2}")
_NAME = re.compile(r"[0-9A-Za-z._:-]{1,128}")
"""Of a peer, a lease or a device (CUDA's may be UUIDs)."""
_MULTIADDR = re.compile(r"/[0-9A-Za-z/._:%-]{1,255}")


def seal_plan(plan: ClusterPlan, identity: Identity) -> bytes:
    """The envelope that carries `plan`, signed by the requester."""
    message = wire_pb2.ClusterPlan(
        cluster=plan.cluster,
        model_digest=bytes.fromhex(plan.digest),
        tensor_parallel=plan.tensor_parallel,
        members=[_member_to_wire(member) for member in plan.members],
        spares=[_member_to_wire(member) for member in plan.spares],
        standby=plan.standby,
        fabric=plan.fabric,
        max_model_len=plan.max_model_len,
        kv_cache_bytes=plan.kv_cache_bytes,
        subnet=plan.subnet,
        cluster_token=plan.cluster_token,
        issued_unix_ms=round(plan.issued_at * 1000),
        kv=None if plan.kv is None else _sharing_to_wire(plan.kv),
    )
    return seal(identity, DOMAIN, PAYLOAD_TYPE, message.SerializeToString())


def open_plan(envelope: bytes) -> tuple[str, ClusterPlan]:
    """The signer's peer id and the plan. Raises ProtocolViolation for anything forged, malformed or too big."""
    signer, payload = open_envelope(envelope, DOMAIN, PAYLOAD_TYPE, max_bytes=MAX_PLAN_BYTES)
    try:
        message = wire_pb2.ClusterPlan.FromString(payload)
    except DecodeError as error:
        raise ProtocolViolation(f"peer {signer} signed something that is no plan") from error
    if not 2 <= len(message.members) <= len(message.members) + len(message.spares) <= MAX_MEMBERS:
        raise ProtocolViolation(f"a plan with {len(message.members) + len(message.spares)} members")
    if len(message.model_digest) != 32 or not _TOKEN.fullmatch(message.cluster_token):
        raise ProtocolViolation("a plan whose digest or token is not of its form")
    if not _CLUSTER.fullmatch(message.cluster) or message.fabric not in ("overlay", "direct"):
        raise ProtocolViolation("a plan for a cluster or a fabric that is none")
    if not _SUBNET.fullmatch(message.subnet):
        raise ProtocolViolation("a plan whose subnet is not of its form")
    if not 0 < message.tensor_parallel <= MAX_DEVICES or not 0 < message.max_model_len <= MAX_CONTEXT:
        raise ProtocolViolation("a plan with an impossible number of ranks or tokens")
    if message.kv_cache_bytes > MAX_BYTES or message.issued_unix_ms > MAX_UNIX_MS:
        raise ProtocolViolation("a plan with an impossible size or time")
    plan = ClusterPlan(
        cluster=message.cluster,
        digest=message.model_digest.hex(),
        tensor_parallel=message.tensor_parallel,
        members=tuple(_member(member) for member in message.members),
        fabric=message.fabric,
        max_model_len=message.max_model_len,
        kv_cache_bytes=message.kv_cache_bytes,
        subnet=message.subnet,
        cluster_token=message.cluster_token,
        issued_at=message.issued_unix_ms / 1000,
        kv=_sharing(message.kv) if message.HasField("kv") else None,
        spares=tuple(_member(member) for member in message.spares),
        standby=message.standby,
    )
    return signer, plan


def is_name(text: str) -> bool:
    """Whether a lease or a device may be called that in a plan. One of another name makes a plan that no host takes."""
    return _NAME.fullmatch(text) is not None


def plan_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """Those of a peer's addresses that a plan may name: a host may advertise more, and stranger ones."""
    return tuple(address for address in addresses if _MULTIADDR.fullmatch(address))[:MAX_ADDRESSES]


def _sharing_to_wire(sharing: KvSharing) -> wire_pb2.KvSharing:
    return wire_pb2.KvSharing(
        scope=sharing.scope,
        scope_id=sharing.scope_id,
        secret=sharing.secret,
        tracker=sharing.tracker,
        tracker_addresses=sharing.tracker_addresses,
        prefill_tok_s=sharing.prefill_tok_s,
    )


def _sharing(message: wire_pb2.KvSharing) -> KvSharing:
    if message.scope not in KV_SCOPES or not KV_ID_BYTES <= len(message.scope_id) <= 2 * KV_ID_BYTES:
        raise ProtocolViolation("a plan that shares KV in a scope that is none")
    if (
        len(message.secret) != KV_SECRET_BYTES
        or not _NAME.fullmatch(message.tracker)
        or len(message.tracker_addresses) > MAX_ADDRESSES
        or not all(_MULTIADDR.fullmatch(address) for address in message.tracker_addresses)
    ):
        raise ProtocolViolation("a plan that shares KV with a secret or a tracker that is not of its form")
    if not 0 <= message.prefill_tok_s < 1e12:  # also refuses NaN
        raise ProtocolViolation("a plan with an impossible prefill speed")
    return KvSharing(
        scope=message.scope,
        scope_id=message.scope_id,
        secret=message.secret,
        tracker=message.tracker,
        tracker_addresses=tuple(message.tracker_addresses),
        prefill_tok_s=message.prefill_tok_s,
    )


def _member_to_wire(member: Member) -> wire_pb2.PlanMember:
    return wire_pb2.PlanMember(
        peer=member.peer,
        address=member.address,
        overlay_certificate=member.overlay_certificate,
        overlay_endpoints=endpoints_to_wire(member.overlay_endpoints),
        lease=member.lease,
        first_layer=member.first_layer,
        end_layer=member.end_layer,
        devices=member.devices,
        memory_bytes=member.memory_bytes,
        addresses=member.addresses,
    )


def _member(message: wire_pb2.PlanMember) -> Member:
    if (
        not _IPV4.fullmatch(message.address)
        or not _NAME.fullmatch(message.peer)
        or not (message.lease == "" or _NAME.fullmatch(message.lease))
        or len(message.devices) > MAX_DEVICES
        or not all(_NAME.fullmatch(device) for device in message.devices)
        or len(message.addresses) > MAX_ADDRESSES
        or not all(_MULTIADDR.fullmatch(address) for address in message.addresses)
    ):
        raise ProtocolViolation("a plan with a member that is not of its form")
    if max(message.first_layer, message.end_layer) > MAX_LAYERS or message.memory_bytes > MAX_BYTES:
        raise ProtocolViolation("a plan with an impossible number of layers or bytes")
    return Member(
        peer=message.peer,
        address=message.address,
        overlay_certificate=certificate_from_wire(message.overlay_certificate),
        overlay_endpoints=endpoints_from_wire(list(message.overlay_endpoints)),
        lease=message.lease,
        first_layer=message.first_layer,
        end_layer=message.end_layer,
        devices=tuple(message.devices),
        memory_bytes=message.memory_bytes,
        addresses=tuple(message.addresses),
    )
