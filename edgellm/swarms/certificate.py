"""Membership certificates, and whether a chain of them lets a peer in. Pure: the time and the revocations are passed in.

A chain is a certificate, or a delegation and the certificate of the member who signed it. What it proves holds for one peer
id, which the connection's handshake has proven to be the other side's: a chain is of no use to anybody else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from edgellm.errors import MembershipError, ProtocolViolation
from edgellm.p2p.envelope import open_envelope, seal
from edgellm.p2p.identity import Identity, peer_of_public_key, public_key_of_peer
from edgellm.types.member import HOST, REQUESTER, Member
from edgellm.wire import swarm_pb2

CERTIFICATE_S = 30 * 86400.0
"""How long a certificate holds; it is renewed from half of that on."""
DELEGATION_S = 600.0
CLOCK_SKEW_S = 60.0
"""How far two machines' clocks may differ."""
MAX_SIGNED_BYTES = 1024
MAX_NAME = 64
SERIAL_BYTES = 16
_CERTIFICATE = ("edgellm-membership-v1", b"/edgellm/membership")
_DELEGATION = ("edgellm-delegation-v1", b"/edgellm/delegation")
_ROLE_BITS = {HOST: 1, REQUESTER: 2}


@dataclass(frozen=True, slots=True)
class Certificate:
    swarm: str
    """The id of its root key, which names the swarm."""
    subject: str
    """The member's peer id."""
    roles: frozenset[str]
    name: str
    serial: str
    """32 hexadecimal digits."""
    issued_at: float
    expires_at: float


def roles_to_bits(roles: Collection[str]) -> int:
    return sum(_ROLE_BITS[role] for role in roles)


def roles_from_bits(bits: int) -> frozenset[str]:
    """Raises MembershipError for no role, or one that there is not."""
    if not 0 < bits < 4:
        raise MembershipError("it gives no role that there is", fault="malformed")
    return frozenset(role for role, bit in _ROLE_BITS.items() if bits & bit)


def checked_name(name: str) -> str:
    """A name for terminals. Raises MembershipError for one that is too long or moves the cursor."""
    if len(name) > MAX_NAME or not name.isprintable():
        raise MembershipError(f"a name is text of at most {MAX_NAME} characters", fault="malformed")
    return name


def peer_from_wire(key: bytes) -> str:
    """Raises MembershipError for what is no Ed25519 key."""
    try:
        return peer_of_public_key(key)
    except ValueError as error:
        raise MembershipError(str(error), fault="malformed") from error


def seal_certificate(root: Identity, certificate: Certificate) -> bytes:
    """The envelope that carries `certificate`, signed by the swarm's root."""
    message = swarm_pb2.Certificate(
        swarm=public_key_of_peer(certificate.swarm),
        subject=public_key_of_peer(certificate.subject),
        roles=roles_to_bits(certificate.roles),
        name=certificate.name,
        serial=bytes.fromhex(certificate.serial),
        issued_unix_s=int(certificate.issued_at),
        expires_unix_s=int(certificate.expires_at),
    )
    return seal(root, *_CERTIFICATE, message.SerializeToString())


def open_certificate(envelope: bytes, swarm: str) -> Certificate:
    """What `swarm`'s root signed. Raises MembershipError for anything else; whether it still holds is not asked."""
    signer, payload = _opened(envelope, *_CERTIFICATE)
    try:
        message = swarm_pb2.Certificate.FromString(payload)
    except DecodeError as error:
        raise MembershipError("a certificate is malformed", fault="malformed") from error
    certificate = Certificate(
        swarm=peer_from_wire(message.swarm),
        subject=peer_from_wire(message.subject),
        roles=roles_from_bits(message.roles),
        name=checked_name(message.name),
        serial=message.serial.hex(),
        issued_at=float(message.issued_unix_s),
        expires_at=float(message.expires_unix_s),
    )
    if len(message.serial) != SERIAL_BYTES:
        raise MembershipError("a certificate has no serial number", fault="malformed")
    if certificate.swarm != swarm:
        raise MembershipError("the certificate is of another swarm", fault="wrong swarm")
    if signer != swarm:
        raise MembershipError("the certificate was not signed by the swarm", fault="forged")
    return certificate


def seal_delegation(member: Identity, swarm: str, subject: str, now: float) -> bytes:
    """Lets the peer `subject` ask in the name of `member` for the next minutes."""
    message = swarm_pb2.Delegation(
        swarm=public_key_of_peer(swarm),
        subject=public_key_of_peer(subject),
        issued_unix_s=int(now),
        expires_unix_s=int(now + DELEGATION_S),
    )
    return seal(member, *_DELEGATION, message.SerializeToString())


def member_of(
    chain: Sequence[bytes], *, swarm: str, peer: str, now: float, revoked: Collection[str] = ()
) -> Member:
    """Whom `chain` proves the peer `peer` to be. Raises MembershipError, whose `fault` says in two words why it does not.

    `revoked` are the ids of members who are members no longer.
    """
    if not 1 <= len(chain) <= 2:
        raise MembershipError(f"a chain of {len(chain)} certificates", fault="malformed")
    certificate = open_certificate(chain[-1], swarm)
    _check_time(certificate.issued_at, certificate.expires_at, now, CERTIFICATE_S)
    if certificate.subject in revoked:
        raise MembershipError("the membership was revoked", fault="revoked")
    roles = certificate.roles
    if len(chain) == 2:
        _check_delegation(chain[0], certificate, peer, now)
        roles &= {REQUESTER}
    elif certificate.subject != peer:
        raise MembershipError("the certificate is another peer's", fault="stolen")
    return Member(certificate.subject, certificate.name, roles, certificate.serial, certificate.expires_at)


def _check_delegation(envelope: bytes, certificate: Certificate, peer: str, now: float) -> None:
    signer, payload = _opened(envelope, *_DELEGATION)
    try:
        message = swarm_pb2.Delegation.FromString(payload)
    except DecodeError as error:
        raise MembershipError("a delegation is malformed", fault="malformed") from error
    if peer_from_wire(message.swarm) != certificate.swarm:
        raise MembershipError("the delegation is for another swarm", fault="wrong swarm")
    if signer != certificate.subject:
        raise MembershipError("the delegation was not signed by the member", fault="forged")
    if peer_from_wire(message.subject) != peer:
        raise MembershipError("the delegation is another peer's", fault="stolen")
    if REQUESTER not in certificate.roles:
        raise MembershipError("the member may lend, and not ask", fault="wrong role")
    _check_time(float(message.issued_unix_s), float(message.expires_unix_s), now, DELEGATION_S)


def _check_time(issued_at: float, expires_at: float, now: float, longest_s: float) -> None:
    if issued_at > now + CLOCK_SKEW_S:
        raise MembershipError("it begins in the future; compare the clocks", fault="from the future")
    if expires_at > issued_at + longest_s + 1:
        raise MembershipError("it holds for longer than any may", fault="malformed")
    if expires_at <= now:
        raise MembershipError("it has expired", fault="expired")


def _opened(envelope: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes]:
    try:
        return open_envelope(envelope, domain, payload_type, max_bytes=MAX_SIGNED_BYTES)
    except ProtocolViolation as error:
        raise MembershipError(str(error), fault="forged") from error
