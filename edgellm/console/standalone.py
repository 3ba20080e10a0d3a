"""The sources of `edgellm console`: a process of its own that is in the swarm and starts hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from edgellm.console.chat import SessionEngines, engines_of
from edgellm.console.local_hosts import LocalHosts, open_local_hosts
from edgellm.console.machine import Machine
from edgellm.console.membership import Membership
from edgellm.console.sessions import SessionsHere
from edgellm.console.sources import Sources
from edgellm.console.watcher import SwarmWatcher
from edgellm.paths import Paths
from edgellm.sessions.registry import Registry


@dataclass(frozen=True, slots=True)
class ConsoleOptions:
    bootstrap: tuple[str, ...] = ()
    """Said now; without any, those that are known are joined."""
    mdns: bool = False
    swarm: str = ""
    """What this user calls the private swarm; empty: the open one."""
    isolation: str = "bwrap"
    """Of the hosts and sessions that are started from here."""


@dataclass(frozen=True, slots=True)
class Console:
    sources: Sources
    hosts: LocalHosts


@asynccontextmanager
async def open_console(options: ConsoleOptions, paths: Paths) -> AsyncIterator[Console]:
    """What a console needs; with the context its hosts end, and sessions stay.

    Raises UsageError for a bootstrap address that is none. A swarm that cannot be joined is shown, and tried again.
    """
    registry = Registry.of(paths)
    watcher = SwarmWatcher(lambda peer: hosts.of_peer(peer))
    membership = Membership(options.bootstrap, paths, watcher, mdns=options.mdns, swarm=options.swarm)
    async with (
        trio.open_nursery() as nursery,
        open_local_hosts(paths.cache / "hosts", membership.place, isolation=options.isolation) as hosts,
    ):
        nursery.start_soon(membership.keep)
        sessions = SessionsHere(
            registry, nursery, membership.place, watcher.latency_s, isolation=options.isolation
        )
        sources = Sources(
            swarm=watcher,
            sessions=sessions,
            engines=SessionEngines(engines_of(registry)),
            hosts=hosts,
            machine=Machine(paths, membership.bootstrap),
        )
        try:
            yield Console(sources, hosts)
        finally:
            nursery.cancel_scope.cancel()
