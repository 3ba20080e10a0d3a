"""The list of those who are members of a swarm no longer. Pure.

Only the root signs one. Lists replace each other by their sequence number; who was revoked longer ago than a certificate holds
is left out of the next one, because no certificate of theirs is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from edgellm.errors import MembershipError, ProtocolViolation
from edgellm.p2p.envelope import open_envelope, seal
from edgellm.p2p.identity import Identity, public_key_of_peer
from edgellm.swarms.certificate import CERTIFICATE_S, peer_from_wire
from edgellm.wire import swarm_pb2

MAX_REVOKED = 4096
MAX_LIST_BYTES = 256 * 1024
_DOMAIN, _TYPE = "edgellm-revocations-v1", b"/edgellm/revocations"


@dataclass(frozen=True, slots=True)
class Revocations:
    sequence: int = 0
    """0: no list was ever made."""
    revoked: tuple[tuple[str, float], ...] = ()
    """Peer ids of members, and since when (Unix seconds)."""

    @property
    def peers(self) -> frozenset[str]:
        return frozenset(peer for peer, _ in self.revoked)

    def with_peer(self, peer: str, now: float) -> Revocations:
        """The list that comes after this one. Raises MembershipError when it would be too long."""
        kept = {each: since for each, since in self.revoked if since > now - CERTIFICATE_S - 86400}
        kept.setdefault(peer, now)
        if len(kept) > MAX_REVOKED:
            raise MembershipError(
                f"more than {MAX_REVOKED} members were revoked within a month", remedy="make a new swarm"
            )
        return Revocations(self.sequence + 1, tuple(kept.items()))


def seal_revocations(root: Identity, revocations: Revocations) -> bytes:
    """The envelope that carries the list, signed by the swarm's root."""
    message = swarm_pb2.Revocations(swarm=root.public_key, sequence=revocations.sequence)
    for peer, since in revocations.revoked:
        message.revoked.add(subject=public_key_of_peer(peer), revoked_unix_s=int(since))
    return seal(root, _DOMAIN, _TYPE, message.SerializeToString())


def open_revocations(envelope: bytes, swarm: str) -> Revocations:
    """The list in an envelope that `swarm`'s root signed. Raises MembershipError for anything else."""
    try:
        signer, payload = open_envelope(envelope, _DOMAIN, _TYPE, max_bytes=MAX_LIST_BYTES)
        message = swarm_pb2.Revocations.FromString(payload)
    except (ProtocolViolation, DecodeError) as error:
        raise MembershipError(f"a list of revocations is malformed: {error}", fault="forged") from error
    if signer != swarm or peer_from_wire(message.swarm) != swarm:
        raise MembershipError("a list of revocations was not signed by the swarm", fault="forged")
    if len(message.revoked) > MAX_REVOKED:
        raise MembershipError("a list of revocations is too long", fault="malformed")
    revoked = tuple((peer_from_wire(entry.subject), float(entry.revoked_unix_s)) for entry in message.revoked)
    return Revocations(message.sequence, revoked)
