"""An issuer's desk: redeems invites of strangers, and renews the certificates of members. Only the maker's node has one."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import structlog
import trio

from edgellm.discovery.bootstrap import bootstrap_peers
from edgellm.errors import EdgeError, MembershipError
from edgellm.p2p.identity import public_key_of_peer
from edgellm.swarms.certificate import Certificate, checked_name, seal_certificate
from edgellm.swarms.invite import open_token
from edgellm.swarms.ledger import Ledger
from edgellm.swarms.rate import Attempts
from edgellm.swarms.store import SwarmHome
from edgellm.wire import swarm_pb2

log = structlog.get_logger(__name__)

MAX_BOOTSTRAP = 8
MAX_AT_ONCE = 4


class Desk:
    """Of one swarm whose root key is on this machine. Its book is on the disk: each answer is there before it is given."""

    def __init__(
        self,
        home: SwarmHome,
        addresses: Callable[[], tuple[str, ...]],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`addresses`: where this node can be reached, with /p2p."""
        self._home = home
        self._root = home.root()
        self._addresses = addresses
        self._now = now
        self._attempts = Attempts()
        self._places = trio.CapacityLimiter(MAX_AT_ONCE)

    async def answer(self, join: swarm_pb2.Join, peer: str, source: str) -> swarm_pb2.Answer:
        """To a stranger that shows an invite: a certificate for `peer`, or why there is none.

        Raises MembershipError where it is not even answered: too many attempts, or nothing that this swarm has signed, so that
        who has no invite does not learn that here is a swarm.
        """
        if not self._attempts.allows(source, trio.current_time()):
            raise MembershipError("too many attempts to join", fault="rate")
        invite = open_token(join.token)
        if invite.swarm != self._root.peer:
            raise MembershipError("the invite is to another swarm", fault="wrong swarm")
        try:
            name = checked_name(join.name)
            _require_ed25519(peer)
            serial = secrets.token_hex(16)
            certificate = await self._change(
                lambda ledger: ledger.redeem(invite, peer, name, serial, self._now())
            )
        except MembershipError as error:
            log.info("invite refused", peer=peer, source=source, fault=error.fault)
            return swarm_pb2.Answer(refused=str(error))
        log.info("a new member", peer=peer, name=name, invite=invite.id)
        record = self._home.record()
        known = (*self._addresses(), *bootstrap_peers((), self._home.directory))
        joined = swarm_pb2.Joined(
            certificate=certificate,
            secret=record.secret,
            bootstrap=tuple(dict.fromkeys(known))[:MAX_BOOTSTRAP],
        )
        return swarm_pb2.Answer(joined=joined)

    async def renew(self, member: str) -> bytes:
        """A new certificate for a member, as an envelope. Raises MembershipError."""
        return await self._change(lambda ledger: ledger.renew(member, self._now()))

    async def _change(self, change: Callable[[Ledger], tuple[Ledger, Certificate]]) -> bytes:
        def work() -> bytes:
            with self._home.changing_ledger() as ledger:
                changed, certificate = change(ledger)
                self._home.keep_ledger(changed)
            return seal_certificate(self._root, certificate)

        try:
            return await trio.to_thread.run_sync(work, limiter=self._places)
        except (OSError, EdgeError) as error:
            if isinstance(error, MembershipError):
                raise
            log.error("the swarm's book cannot be written", error=str(error))
            raise MembershipError("the issuer cannot write its book now", fault="issuer") from error


def _require_ed25519(peer: str) -> None:
    try:
        public_key_of_peer(peer)
    except ValueError as error:
        raise MembershipError("members have Ed25519 keys", fault="malformed") from error
