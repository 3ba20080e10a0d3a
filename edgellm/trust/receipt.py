"""What a host did in a lease, as requester and host both sign it. Pure.

The requester's envelope holds the receipt, the host's envelope holds the requester's: so the host signs exactly what it was
shown. Host, requester, cluster and lease are named in it, and a lease has one receipt: no receipt passes for another.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from edgellm.errors import ProtocolViolation
from edgellm.leasing.lease import Lease
from edgellm.p2p.envelope import open_envelope, seal
from edgellm.p2p.identity import Identity
from edgellm.wire import wire_pb2

REQUESTER_DOMAIN = "edgellm-receipt-v1"
HOST_DOMAIN = "edgellm-receipt-host-v1"
PAYLOAD_TYPE = b"/edgellm/receipt"
MAX_RECEIPT_BYTES = 2048
MAX_COUNT = 1 << 40
"""Answers or tokens of one lease."""
CLOCKS_DIFFER_S = 3600.0
SLACK_S = 5.0
"""A lease begins at the requester a little later than at the host; the last message takes its time as well."""
_CLUSTER = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Receipt:
    """How much a host can claim to have served; the requester counted, the host did not object."""

    cluster: str
    lease: str
    host: str
    requester: str
    digest: str
    """Of the model, hex."""
    first_layer: int
    end_layer: int
    answers: int
    """That the host's cluster gave meanwhile."""
    tokens: int
    seconds: float
    """That it lent."""
    ended_at: float


def sign(receipt: Receipt, requester: Identity) -> bytes:
    """The requester's envelope."""
    message = wire_pb2.Receipt(
        cluster=receipt.cluster,
        lease=receipt.lease,
        host=receipt.host,
        requester=receipt.requester,
        model_digest=bytes.fromhex(receipt.digest),
        first_layer=receipt.first_layer,
        end_layer=receipt.end_layer,
        answers=receipt.answers,
        tokens=receipt.tokens,
        seconds=receipt.seconds,
        ended_unix_ms=round(receipt.ended_at * 1000),
    )
    return seal(requester, REQUESTER_DOMAIN, PAYLOAD_TYPE, message.SerializeToString())


def countersign(envelope: bytes, host: Identity) -> bytes:
    """The host's envelope around the requester's."""
    return seal(host, HOST_DOMAIN, PAYLOAD_TYPE, envelope)


def open_signed(envelope: bytes) -> Receipt:
    """The receipt in a requester's envelope. Raises ProtocolViolation unless the requester that it names signed it."""
    signer, payload = open_envelope(envelope, REQUESTER_DOMAIN, PAYLOAD_TYPE, max_bytes=MAX_RECEIPT_BYTES)
    try:
        message = wire_pb2.Receipt.FromString(payload)
    except DecodeError as error:
        raise ProtocolViolation(f"peer {signer} signed something that is no receipt") from error
    if signer != message.requester:
        raise ProtocolViolation(f"peer {signer} signed a receipt of another requester")
    if not _CLUSTER.fullmatch(message.cluster) or len(message.lease) > 64 or len(message.host) > 64:
        raise ProtocolViolation("a receipt whose cluster, lease or host is not of its form")
    if len(message.model_digest) != 32 or not message.first_layer < message.end_layer:
        raise ProtocolViolation("a receipt whose model or layers are not of their form")
    if message.answers > MAX_COUNT or message.tokens > MAX_COUNT:
        raise ProtocolViolation("a receipt of more than anybody could serve")
    if not (math.isfinite(message.seconds) and message.seconds >= 0):
        raise ProtocolViolation("a receipt of an impossible time")
    return Receipt(
        cluster=message.cluster,
        lease=message.lease,
        host=message.host,
        requester=message.requester,
        digest=message.model_digest.hex(),
        first_layer=message.first_layer,
        end_layer=message.end_layer,
        answers=message.answers,
        tokens=message.tokens,
        seconds=message.seconds,
        ended_at=message.ended_unix_ms / 1000,
    )


def open_countersigned(envelope: bytes) -> Receipt:
    """The receipt that both have signed. Raises ProtocolViolation unless both are who it names."""
    host, inner = open_envelope(envelope, HOST_DOMAIN, PAYLOAD_TYPE, max_bytes=2 * MAX_RECEIPT_BYTES)
    receipt = open_signed(inner)
    if host != receipt.host:
        raise ProtocolViolation(f"peer {host} signed a receipt of another host")
    return receipt


def objection(receipt: Receipt, *, host: str, lease: Lease, now: float) -> str | None:
    """Why the host may not sign it for this lease of its own, or None. The host knows its time, not what was answered."""
    if receipt.host != host or receipt.requester != lease.requester:
        return "names other peers"
    if receipt.lease != lease.id or receipt.cluster != lease.cluster:
        return "is of another lease"
    if (receipt.digest, receipt.first_layer, receipt.end_layer) != (
        lease.digest,
        lease.first_layer,
        lease.end_layer,
    ):
        return "is of other layers"
    if receipt.seconds > now - lease.granted_at + SLACK_S:
        return "is of a longer time than the lease had"
    if abs(receipt.ended_at - now) > CLOCKS_DIFFER_S:
        return "is not of now"
    return None
