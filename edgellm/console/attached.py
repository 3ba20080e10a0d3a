"""The sources of a console within a session's daemon, which is in the swarm already and starts no hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from edgellm.console.chat import SessionEngines, engines_of
from edgellm.console.local_hosts import NoHosts
from edgellm.console.machine import Machine
from edgellm.console.membership import Place
from edgellm.console.own_session import OwnEngine, OwnSession
from edgellm.console.sessions import SessionsHere
from edgellm.console.sources import NotOffered, Sources
from edgellm.console.watcher import SwarmWatcher
from edgellm.p2p.network import Network
from edgellm.paths import Paths
from edgellm.sessions.registry import Registry


@asynccontextmanager
async def attached_sources(
    network: Network, paths: Paths, session: str, place: Place, close: Callable[[], None], *, isolation: str
) -> AsyncIterator[Sources]:
    """What a console of `session` alone needs, over `network`, for as long as the context lasts.

    `place` is where the daemon itself joined; `close` has the session end.
    """
    registry = Registry.of(paths)
    watcher = SwarmWatcher()

    async def same_place() -> Place:
        return place

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.keep_looking, network, place.bootstrap)
        yield Sources(
            swarm=watcher,
            sessions=OwnSession(
                SessionsHere(registry, nursery, same_place, watcher.latency_s, isolation=isolation),
                session,
                close,
            ),
            engines=OwnEngine(SessionEngines(engines_of(registry)), session),
            hosts=NoHosts(
                NotOffered(
                    "hosts are not started from the console of a session", remedy="run `edgellm console`"
                )
            ),
            machine=Machine(paths, lambda: place.bootstrap),
            session=session,
        )
        nursery.cancel_scope.cancel()
