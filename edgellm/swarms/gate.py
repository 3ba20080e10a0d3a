"""What one process knows of its swarm: what it shows others, whom it lets in, and who of them must go.

Reads the clock that it is given and nothing else; the files are `attend`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgellm.errors import MembershipError
from edgellm.p2p.identity import Identity
from edgellm.swarms.certificate import (
    CERTIFICATE_S,
    CLOCK_SKEW_S,
    DELEGATION_S,
    Certificate,
    member_of,
    open_certificate,
    seal_delegation,
)
from edgellm.swarms.revocation import Revocations, open_revocations
from edgellm.swarms.seal import derived, open_membership, seal_membership
from edgellm.types.member import Member
from edgellm.wire import swarm_pb2

MAX_OBJECTION = 200
CONNECTING_S = 30.0
"""After which a peer that was let in and is not connected is gone again."""


@dataclass
class Acquaintance:
    """A peer that was let in, and the newest list of revocations that it is known to have."""

    member: Member
    revocations: int
    admitted_at: float
    """Unix seconds."""


class Gate:
    """Of one swarm, for one process."""

    def __init__(
        self,
        name: str,
        swarm: str,
        secret: bytes,
        member: Identity,
        certificate: bytes,
        revocations: bytes = b"",
        *,
        now: Callable[[], float],
        speaks_as: str | None = None,
    ) -> None:
        """`speaks_as`: the peer id of this process, where it is another than the member's: it asks in the member's name.

        Raises MembershipError where the own membership does not hold.
        """
        self.name = name
        self.swarm = swarm
        self._secret = secret
        self._member = member
        self._now = now
        self._peer = speaks_as or member.peer
        self._certificate = certificate
        self._list = revocations
        self._revocations = open_revocations(revocations, swarm) if revocations else Revocations()
        self._revoked = self._revocations.peers
        self._delegation: tuple[float, bytes] = (0.0, b"")
        self._known: dict[str, Acquaintance] = {}
        self.objected = ""
        """Why a peer of the swarm did not let this machine in, as it said last."""
        self.own = self.check_own()

    @property
    def beacon_key(self) -> bytes:
        return derived(self._secret, "beacon")

    @property
    def certificate(self) -> Certificate:
        return open_certificate(self._certificate, self.swarm)

    @property
    def revocations(self) -> int:
        """The sequence of the newest list."""
        return self._revocations.sequence

    @property
    def revocations_envelope(self) -> bytes:
        return self._list

    def check_own(self) -> Member:
        """What this process is in its swarm. Raises MembershipError where it is nothing any more."""
        try:
            return self._judged(self.chain(), self._peer)
        except MembershipError as error:
            said = {
                "expired": f"the membership of this machine in {self.name} has expired",
                "revoked": f"the membership of this machine in {self.name} was revoked",
                "wrong role": f"the membership of this machine in {self.name} is for lending only",
            }.get(error.fault, f"the membership of this machine in {self.name} does not hold: {error}")
            raise MembershipError(
                said,
                remedy=f"ask its maker for a new invite, then: edgellm swarm leave {self.name}; edgellm swarm join TOKEN",
                fault=error.fault,
            ) from error

    def chain(self) -> tuple[bytes, ...]:
        """What this process shows others now."""
        if self._peer == self._member.peer:
            return (self._certificate,)
        now = self._now()
        made_at, delegation = self._delegation
        if not delegation or not made_at <= now < made_at + DELEGATION_S / 2:
            delegation = seal_delegation(self._member, self.swarm, self._peer, now)
            self._delegation = (now, delegation)
        return (delegation, self._certificate)

    # --- with a peer whose connection has just been made

    def greeting(self, handshake: bytes, *, from_dialler: bool) -> bytes:
        """What is said to it, sealed."""
        message = swarm_pb2.Membership(chain=self.chain(), revocations=self.revocations)
        return seal_membership(self._secret, handshake, message, from_dialler=from_dialler)

    def objection(self, handshake: bytes, why: str, *, from_dialler: bool) -> bytes:
        """What is said instead to one who has the swarm's secret and is not let in."""
        message = swarm_pb2.Membership(objection=why[:MAX_OBJECTION])
        return seal_membership(self._secret, handshake, message, from_dialler=from_dialler)

    def admit(self, peer: str, handshake: bytes, sealed: bytes, *, from_dialler: bool) -> Member:
        """Lets `peer` in that said `sealed`. Raises MembershipError; its fault is "stranger" where nothing may be answered."""
        said = open_membership(self._secret, handshake, sealed, from_dialler=from_dialler)
        if said.objection:
            why = self.objected = said.objection[:MAX_OBJECTION]
            raise MembershipError(f"it does not let this machine in: {why}", fault="objection")
        member = self._judged(tuple(said.chain), peer)
        self._known[peer] = Acquaintance(member, said.revocations, self._now())
        return member

    # --- with peers that were let in

    def member(self, peer: str) -> Member | None:
        known = self._known.get(peer)
        return known.member if known else None

    def present(self, peer: str, chain: tuple[bytes, ...]) -> None:
        """A peer that was let in shows a newer chain. Raises MembershipError, and the old one holds on."""
        member = self._judged(chain, peer)
        known = self._known.get(peer)
        if known is None or known.member.peer != member.peer:
            raise MembershipError("it is another member than it was", fault="stolen")
        known.member = member

    def learn(self, envelope: bytes, source: str = "") -> bool:
        """Takes a list of revocations; whether it was news. Raises MembershipError for one that the swarm did not sign."""
        found = open_revocations(envelope, self.swarm)
        if source:
            self.told(source, found.sequence)
        if found.sequence <= self._revocations.sequence:
            return False
        self._revocations, self._list, self._revoked = found, envelope, found.peers
        return True

    def told(self, peer: str, sequence: int) -> None:
        """`peer` has that list, or a newer one."""
        if (known := self._known.get(peer)) is not None:
            known.revocations = max(known.revocations, sequence)

    def renewed(self, envelope: bytes) -> None:
        """Takes a newer certificate of its own. Raises MembershipError for one that is not."""
        certificate = open_certificate(envelope, self.swarm)
        if certificate.subject != self._member.peer:
            raise MembershipError("the certificate is another peer's", fault="stolen")
        if certificate.expires_at > self.certificate.expires_at:
            self._certificate = envelope

    def is_renewal_due(self) -> bool:
        return self.certificate.expires_at < self._now() + CERTIFICATE_S / 2

    def behind(self, connected: frozenset[str]) -> list[str]:
        """Connected peers that do not have this node's list of revocations yet."""
        return [
            peer
            for peer, known in self._known.items()
            if peer in connected and known.revocations < self.revocations
        ]

    def doomed(self, connected: frozenset[str] = frozenset()) -> list[str]:
        """Peers that were let in and must go: revoked meanwhile, or their certificate has ended. And those `connected` of whom
        nothing is known: they were let in and forgotten again while their connection was still being made.
        """
        now = self._now()
        ended = [
            peer
            for peer, known in self._known.items()
            if known.member.peer in self._revoked or known.member.expires_at + CLOCK_SKEW_S <= now
        ]
        return [*ended, *(connected - self._known.keys())]

    def forget(self, peer: str) -> None:
        self._known.pop(peer, None)

    def forget_all_but(self, connected: frozenset[str]) -> None:
        """Forgets peers that are not connected. One that was let in just now is about to be."""
        latest = self._now() - CONNECTING_S
        for peer, known in tuple(self._known.items()):
            if peer not in connected and known.admitted_at < latest:
                self.forget(peer)

    def known(self) -> frozenset[str]:
        return frozenset(self._known)

    def _judged(self, chain: tuple[bytes, ...], peer: str) -> Member:
        return member_of(chain, swarm=self.swarm, peer=peer, now=self._now(), revoked=self._revoked)
