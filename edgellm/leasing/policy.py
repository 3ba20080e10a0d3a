"""Whom a host lends to. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.errors import UsageError
from edgellm.types.member import REQUESTER, Member


@dataclass(frozen=True, slots=True)
class Policy:
    """What the owner said. Who is none of these is refused."""

    anyone: bool = False
    """Whoever reaches the host."""
    members: bool = False
    """All members of the swarm who may ask."""
    peers: frozenset[str] = frozenset()
    """These: ids of members, or of requesters themselves."""

    def told(self, swarm: str) -> str:
        """For the owner: who may lease here."""
        if self.anyone:
            return f"every member of {swarm}, whatever the role" if swarm else "anyone who reaches it"
        chosen = f"{len(self.peers)} chosen peer{'s' * (len(self.peers) != 1)}" if self.peers else ""
        members = f"the members of {swarm} who may ask" if self.members else ""
        return " and ".join(filter(None, (members, chosen)))

    def objection(self, requester: str, member: Member | None) -> str | None:
        """Why the peer `requester`, who is `member` in a private swarm, gets no lease; None where it does."""
        if requester in self.peers or (member is not None and member.peer in self.peers):
            return None
        if self.anyone:
            return None
        if not self.members:
            return "this host lends to chosen peers only; its owner can add you by --allow"
        if member is None:
            return "this host lends to members of its swarm only, and this is no private swarm"
        if REQUESTER not in member.roles:
            return "this host lends to members who may ask, and your invite was for lending only"
        return None


ANYONE = Policy(anyone=True)
MEMBERS = Policy(members=True)


def chosen_policy(peers: tuple[str, ...], *, members: bool, anyone: bool, is_private: bool) -> Policy:
    """What the owner said, by default members only. Raises UsageError where nobody could ever lease."""
    if anyone and (members or peers):
        raise UsageError(
            "--allow-anyone and a choice of whom to lend to exclude each other",
            remedy="leave out one of them",
        )
    if members and not is_private:
        raise UsageError(
            "--allow-members needs a private swarm: the open one has no members",
            remedy="say --swarm NAME (`edgellm swarm create` makes one), or --allow-anyone",
        )
    if not (peers or anyone or is_private):
        raise UsageError(
            "nobody may lease this machine yet: hosts lend to members of their swarm, and the open swarm has no members",
            remedy="add --allow-anyone to lend to whoever asks, or make a private swarm: edgellm swarm create NAME",
        )
    return Policy(anyone=anyone, members=members or (not peers and not anyone), peers=frozenset(peers))
