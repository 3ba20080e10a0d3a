"""A node inside a private swarm: its doorkeeper, its attendance, and on the maker's machine the desk."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from edgellm.errors import DiscoveryError, MembershipError
from edgellm.p2p.identity import Identity
from edgellm.p2p.node import LibP2PNetwork, NodeConfig, open_node
from edgellm.swarms.attend import Attendance
from edgellm.swarms.desk import Desk
from edgellm.swarms.exchange import Guard
from edgellm.swarms.gate import Gate
from edgellm.swarms.store import SwarmHome


def open_gate(home: SwarmHome, identity: Identity) -> Gate:
    """Of this machine's membership, for a process that speaks as `identity`: the member's own, or one of this moment.

    Raises MembershipError where the membership does not hold any more.
    """
    record = home.record()
    return Gate(
        home.name,
        record.swarm,
        record.secret,
        home.member(),
        home.certificate_envelope(),
        home.revocations_envelope(),
        now=time.time,
        speaks_as=identity.peer,
    )


def require_role(home: SwarmHome, role: str) -> None:
    """Raises MembershipError where this machine's membership does not hold, or not for that."""
    own = open_gate(home, home.member()).own
    if role not in own.roles:
        raise MembershipError(
            f"the invite by which this machine joined {home.name} was not for a {role}",
            remedy=f"ask its maker for one with --role {role} or both, then: edgellm swarm leave {home.name}",
            fault="wrong role",
        )


@asynccontextmanager
async def open_swarm_node(config: NodeConfig, home: SwarmHome | None) -> AsyncIterator[LibP2PNetwork]:
    """As `edgellm.p2p.node.open_node`, inside the swarm `home`; None: the open one.

    Raises MembershipError as well: at the start, and out of the body when this machine is a member no longer.
    """
    if home is None:
        async with open_node(config) as network:
            yield network
        return
    gate = open_gate(home, config.identity)
    # One that listens under the member's own id is there to be found.
    is_lasting = bool(config.listen or config.relays) and config.identity.peer == gate.certificate.subject
    opened: list[LibP2PNetwork] = []
    desk = None
    if home.is_makers and is_lasting:
        desk = Desk(home, lambda: opened[0].addresses if opened else ())
    bootstrap = tuple(
        address for address in config.bootstrap if not address.endswith(f"/p2p/{config.identity.peer}")
    )
    guarded = replace(config, bootstrap=bootstrap, doorkeeper=Guard(gate, desk))
    try:
        async with open_node(guarded) as network:
            opened.append(network)
            if is_lasting:
                await trio.to_thread.run_sync(home.keep_addresses, network.addresses)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Attendance(network, gate, home, desk).run)
                yield network
                nursery.cancel_scope.cancel()
    except DiscoveryError as error:
        if opened or not gate.objected:
            raise
        raise MembershipError(
            f"the peers of {home.name} do not let this machine in: {gate.objected}",
            remedy=f"ask its maker for a new invite, then: edgellm swarm leave {home.name}; edgellm swarm join TOKEN",
            fault="objection",
        ) from error
