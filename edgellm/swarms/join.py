"""Becoming a member: presents an invite to its issuer, and keeps what it gives."""

from __future__ import annotations

import time

from edgellm.errors import MembershipError, NetworkError
from edgellm.p2p.identity import load_or_create_identity
from edgellm.p2p.node import NodeConfig, open_node
from edgellm.paths import Paths
from edgellm.swarms.certificate import member_of
from edgellm.swarms.exchange import Applicant
from edgellm.swarms.invite import open_token
from edgellm.swarms.seal import SECRET_BYTES
from edgellm.swarms.store import (
    SwarmHome,
    SwarmRecord,
    applicants_key,
    checked_swarm_name,
    keep_membership,
    swarms_of,
)
from edgellm.wire import swarm_pb2

JOIN_TIMEOUT_S = 20.0
MAX_BOOTSTRAP = 16


async def join_swarm(token: bytes, paths: Paths, who: str, name: str | None = None) -> SwarmHome:
    """Joins the swarm that `token` invites to, as `who`; `name` is what the user calls it, else its own name is taken.

    Raises MembershipError where the issuer refuses, NetworkError where it cannot be reached, UsageError for a taken name.
    """
    invite = open_token(token)
    if invite.expires_at <= time.time():
        raise MembershipError("the invite has expired", remedy="ask for a new one", fault="expired")
    for home in swarms_of(paths):
        if home.record().swarm == invite.swarm:
            raise MembershipError(
                f"this machine is a member already: it calls the swarm {home.name}",
                remedy=f"to join anew: edgellm swarm leave {home.name}",
            )
    chosen = checked_swarm_name(paths, name or invite.name)
    key = applicants_key(paths, invite.swarm, invite.id)
    member, applicant = load_or_create_identity(key), Applicant(token, who)
    config = NodeConfig(identity=member, listen=(), dht_server=False, doorkeeper=applicant)
    failure: NetworkError | None = None
    async with open_node(config) as network:
        try:
            await network.open_stream(
                invite.issuer, "/edgellm/join", addresses=invite.addresses, timeout_s=JOIN_TIMEOUT_S
            )
        except NetworkError as error:
            # Always: the issuer closes the connection when it has answered.
            failure = error
    if applicant.refused:
        raise MembershipError(
            f"the issuer refuses: {applicant.refused}", remedy="ask for a new invite", fault="refused"
        )
    joined = applicant.joined
    if joined is None:
        raise NetworkError(
            f"no issuer of {invite.name} could be asked: {failure}",
            remedy="the machine that made the swarm must run and be reachable: edgellm bootstrap --swarm NAME, or host",
        )
    _check(joined, invite.swarm, member.peer)
    record = SwarmRecord(invite.swarm, joined.secret, invite.issuer, invite.addresses)
    bootstrap = [address for address in joined.bootstrap if "/p2p/" in address and len(address) < 512]
    home = keep_membership(
        paths, chosen, record, member, joined.certificate, tuple(bootstrap[:MAX_BOOTSTRAP])
    )
    key.unlink(missing_ok=True)
    return home


def _check(joined: swarm_pb2.Joined, swarm: str, peer: str) -> None:
    member_of((joined.certificate,), swarm=swarm, peer=peer, now=time.time())
    if len(joined.secret) != SECRET_BYTES:
        raise MembershipError("the issuer gave no secret of the swarm", fault="malformed")
