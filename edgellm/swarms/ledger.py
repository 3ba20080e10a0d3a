"""The book of a swarm's maker: which invites were made and used, and who joined by them. Pure: changes give a new book."""

from __future__ import annotations

import msgspec

from edgellm.errors import MembershipError
from edgellm.swarms.certificate import CERTIFICATE_S, Certificate
from edgellm.swarms.invite import Invite

MAX_MEMBERS = 4096
MAX_INVITES = 4096
KEPT_S = 30 * 86400.0
"""How long an invite that has expired stays in the book."""


class Issued(msgspec.Struct, frozen=True):
    """An invite that was made."""

    id: str
    roles: tuple[str, ...]
    uses: int
    made_at: float
    expires_at: float
    used_by: tuple[str, ...] = ()
    """Peer ids of those who joined by it."""
    is_revoked: bool = False

    def state(self, now: float) -> str:
        if self.is_revoked:
            return "revoked"
        if self.expires_at <= now:
            return "expired"
        return "used up" if len(self.used_by) >= self.uses else "open"


class Joined(msgspec.Struct, frozen=True):
    """Somebody who became a member."""

    peer: str
    name: str
    roles: tuple[str, ...]
    serial: str
    joined_at: float
    expires_at: float
    invite: str = ""
    """By which it joined; empty: it made the swarm."""
    revoked_at: float = 0.0


class Ledger(msgspec.Struct, frozen=True):
    swarm: str
    invites: tuple[Issued, ...] = ()
    members: tuple[Joined, ...] = ()

    def member(self, peer: str) -> Joined | None:
        return next((member for member in self.members if member.peer == peer), None)

    def invite(self, invite: str) -> Issued | None:
        return next((issued for issued in self.invites if issued.id == invite), None)

    def with_invite(self, invite: Invite, now: float) -> Ledger:
        """Raises MembershipError when there are too many already."""
        kept = tuple(issued for issued in self.invites if issued.expires_at > now - KEPT_S)
        if len(kept) >= MAX_INVITES:
            raise MembershipError(f"there are {MAX_INVITES} invites already", remedy="wait until some expire")
        issued = Issued(invite.id, tuple(sorted(invite.roles)), invite.uses, now, invite.expires_at)
        return msgspec.structs.replace(self, invites=(*kept, issued))

    def admit(
        self, peer: str, name: str, roles: frozenset[str], serial: str, now: float, *, invite: str = ""
    ) -> tuple[Ledger, Certificate]:
        """A new member's certificate, and the book with the member in it."""
        certificate = Certificate(self.swarm, peer, roles, name, serial, now, now + CERTIFICATE_S)
        joined = Joined(peer, name, tuple(sorted(roles)), serial, now, certificate.expires_at, invite)
        return msgspec.structs.replace(self, members=(*self.members, joined)), certificate

    def redeem(
        self, invite: Invite, peer: str, name: str, serial: str, now: float
    ) -> tuple[Ledger, Certificate]:
        """What `invite`, whose signature was checked, gives to `peer`. Raises MembershipError that says why it gives nothing.

        Who redeems the same invite again (its first answer was lost) gets the same again, and it counts once.
        """
        issued = self.invite(invite.id)
        if invite.swarm != self.swarm:
            raise MembershipError("the invite is to another swarm", fault="wrong swarm")
        if issued is None:
            raise MembershipError("nobody here made that invite", fault="unknown")
        if issued.is_revoked:
            raise MembershipError("the invite was revoked", remedy="ask for a new one", fault="revoked")
        if min(issued.expires_at, invite.expires_at) <= now:
            raise MembershipError("the invite has expired", remedy="ask for a new one", fault="expired")
        known = self.member(peer)
        if known is not None and known.revoked_at:
            raise MembershipError("the membership was revoked", fault="revoked")
        if known is not None and peer in issued.used_by:
            return self.renew(peer, now)
        if known is not None:
            raise MembershipError("this peer is a member already", fault="known")
        if len(issued.used_by) >= min(issued.uses, invite.uses):
            raise MembershipError("the invite is used up", remedy="ask for a new one", fault="used up")
        if len(self.members) >= MAX_MEMBERS:
            raise MembershipError(f"the swarm has {MAX_MEMBERS} members", fault="full")
        used = msgspec.structs.replace(issued, used_by=(*issued.used_by, peer))
        invites = tuple(used if each.id == used.id else each for each in self.invites)
        with_use = msgspec.structs.replace(self, invites=invites)
        roles = invite.roles & frozenset(issued.roles)
        return with_use.admit(peer, name, roles, serial, now, invite=issued.id)

    def renew(self, peer: str, now: float) -> tuple[Ledger, Certificate]:
        """A certificate like the member's last one that holds from now on. Raises MembershipError."""
        known = self.member(peer)
        if known is None:
            raise MembershipError("this peer is no member", fault="unknown")
        if known.revoked_at:
            raise MembershipError("the membership was revoked", fault="revoked")
        certificate = Certificate(
            self.swarm, peer, frozenset(known.roles), known.name, known.serial, now, now + CERTIFICATE_S
        )
        return self._with(msgspec.structs.replace(known, expires_at=certificate.expires_at)), certificate

    def revoke_member(self, peer: str, now: float) -> Ledger:
        """Raises MembershipError where there is no such member."""
        known = self.member(peer)
        if known is None:
            raise MembershipError("this peer is no member", fault="unknown")
        return self._with(msgspec.structs.replace(known, revoked_at=known.revoked_at or now))

    def revoke_invite(self, invite: str) -> Ledger:
        """Nobody joins by it any more; who has joined stays. Raises MembershipError where there is no such invite."""
        issued = self.invite(invite)
        if issued is None:
            raise MembershipError("nobody here made that invite", fault="unknown")
        gone = msgspec.structs.replace(issued, is_revoked=True)
        return msgspec.structs.replace(
            self, invites=tuple(gone if each.id == invite else each for each in self.invites)
        )

    def _with(self, member: Joined) -> Ledger:
        members = tuple(member if each.peer == member.peer else each for each in self.members)
        return msgspec.structs.replace(self, members=members)
