"""A private swarm whose nodes meet over a network in memory, with real keys, real files and a clock that tests turn."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from edgellm.p2p.identity import Identity
from edgellm.paths import Paths
from edgellm.swarms.attend import Attendance
from edgellm.swarms.certificate import CERTIFICATE_S, Certificate, seal_certificate
from edgellm.swarms.desk import Desk
from edgellm.swarms.exchange import Guard
from edgellm.swarms.gate import Gate
from edgellm.swarms.invite import Invite, token_of
from edgellm.swarms.store import SwarmHome, SwarmRecord, keep_membership, make_swarm
from edgellm.testing.memory_network import MemoryHub, MemoryNetwork
from edgellm.types.member import HOST, REQUESTER

BOTH = frozenset((HOST, REQUESTER))
NOW = 1_800_000_000.0


def certify(
    root: Identity,
    subject: str,
    *,
    roles: Iterable[str] = BOTH,
    swarm: str | None = None,
    issued_at: float = NOW,
    lasts_s: float = CERTIFICATE_S,
    name: str = "bob",
) -> bytes:
    """A certificate's envelope."""
    return seal_certificate(
        root,
        Certificate(
            swarm or root.peer, subject, frozenset(roles), name, "5e" * 16, issued_at, issued_at + lasts_s
        ),
    )


@dataclass
class PrivateSwarm:
    """One, whose maker is `maker`. `now` is the time by every clock in it."""

    top: Path
    now: float = NOW
    maker: SwarmHome = field(init=False)

    def __post_init__(self) -> None:
        self.maker = make_swarm(self.paths("maker"), "lab", "maker")
        self.now = self.maker.certificate().issued_at

    def paths(self, who: str) -> Paths:
        top = self.top / who
        paths = Paths(top / "state", top / "cache", top / "run")
        for directory in (paths.state, paths.cache, paths.runtime):
            directory.mkdir(parents=True, exist_ok=True)
        return paths

    @property
    def root(self) -> Identity:
        return self.maker.root()

    @property
    def record(self) -> SwarmRecord:
        return self.maker.record()

    def clock(self) -> float:
        return self.now

    def home(self, who: str, roles: Iterable[str] = BOTH, **certificate: float) -> SwarmHome:
        """A new member's, with a certificate that the ledger knows."""
        member = Identity.generate()
        with self.maker.changing_ledger() as ledger:
            changed, _ = ledger.admit(member.peer, who, frozenset(roles), secrets.token_hex(16), self.now)
            self.maker.keep_ledger(changed)
        envelope = certify(self.root, member.peer, roles=roles, name=who, issued_at=self.now, **certificate)
        return keep_membership(self.paths(who), "lab", self.record, member, envelope, ())

    def invite(self, **changes: object) -> bytes:
        """A token that is in the ledger."""
        invite = self.invitation(**changes)
        with self.maker.changing_ledger() as ledger:
            self.maker.keep_ledger(ledger.with_invite(invite, self.now))
        return token_of(self.root, invite)

    def invitation(self, **changes: object) -> Invite:
        entries: dict[str, object] = {
            "swarm": self.record.swarm,
            "name": "lab",
            "id": secrets.token_hex(8),
            "roles": BOTH,
            "uses": 1,
            "expires_at": self.now + 3600,
            "issuer": self.record.issuer,
            "addresses": ("/ip4/10.0.0.1/tcp/4001",),
        }
        return Invite(**(entries | changes))  # type: ignore[arg-type]

    def gate(self, home: SwarmHome, identity: Identity | None = None) -> Gate:
        record = home.record()
        return Gate(
            home.name,
            record.swarm,
            record.secret,
            home.member(),
            home.certificate_envelope(),
            home.revocations_envelope(),
            now=self.clock,
            speaks_as=identity.peer if identity else None,
        )

    def node(
        self, hub: MemoryHub, home: SwarmHome, nursery: trio.Nursery, *, asks: bool = False
    ) -> MemoryNetwork:
        """A node of that member; one that `asks` speaks under a key of its own."""
        identity = Identity.generate() if asks else home.member()
        gate = self.gate(home, identity)
        desk = (
            Desk(home, lambda: ("/memory/1/p2p/maker",), now=self.clock)
            if home.is_makers and not asks
            else None
        )
        network = hub.join(identity, Guard(gate, desk))
        nursery.start_soon(Attendance(network, gate, home, desk).run)
        return network

    def visitor(self, hub: MemoryHub, home: SwarmHome) -> MemoryNetwork:
        """As `node`, of one who asks and does not attend to what others tell."""
        identity = Identity.generate()
        return hub.join(identity, Guard(self.gate(home, identity)))
