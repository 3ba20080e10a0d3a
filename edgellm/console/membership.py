"""The console's place in a swarm: in that of the known bootstrap peers, or, where there is none, in one of its own.

A swarm of its own has its meeting point here, on loopback, and grows by the hosts that are started from the console: that is
how one machine tries all of it alone. It is also founded when the remembered peers are gone and a host is started nevertheless.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
import trio

from edgellm.console.sources import Unavailable
from edgellm.console.watcher import SwarmWatcher
from edgellm.discovery.bootstrap import ENVIRONMENT, bootstrap_peers, forget, remember
from edgellm.errors import EdgeError, unwrapped
from edgellm.p2p.identity import Identity
from edgellm.p2p.node import NodeConfig, open_node
from edgellm.paths import Paths
from edgellm.requester.open import joined_swarm
from edgellm.swarms.chosen import known_peers, require_peers, swarm_called

log = structlog.get_logger(__name__)

RETRY_S = 3.0
PLACE_S = 25.0
"""How long those that need a swarm wait for one."""
_LOOPBACK = ("/ip4/127.", "/ip6/::1/")


@dataclass(frozen=True, slots=True)
class Place:
    """How hosts and sessions that are started here get into the console's swarm."""

    bootstrap: tuple[str, ...]
    mdns: bool
    swarm: str = ""
    """What this user calls the private swarm; empty: the open one."""

    @property
    def listen(self) -> str:
        """Where hosts listen: where nobody from outside can join, there alone."""
        is_local = bool(self.bootstrap) and all(one.startswith(_LOOPBACK) for one in self.bootstrap)
        return "/ip4/127.0.0.1/tcp/0" if is_local and not self.mdns else "/ip4/0.0.0.0/tcp/0"


class Membership:
    """Joins, and joins again."""

    def __init__(
        self, said: Sequence[str], paths: Paths, watcher: SwarmWatcher, *, mdns: bool, swarm: str = ""
    ) -> None:
        """`said`: bootstrap addresses of now; `swarm`: a private one, which is never replaced by another.

        Raises UsageError where an address is none.
        """
        self._home = swarm_called(swarm, paths)
        self._said = tuple(said)
        self._paths = paths
        self._watcher = watcher
        self._mdns = mdns
        self._place: Place | None = None
        self._error: EdgeError | None = None
        self._is_demanded = bool(said or swarm or os.environ.get(ENVIRONMENT))
        """A swarm that was asked for by name is not replaced by another one."""
        self._founding = trio.Event()
        self._known()

    def bootstrap(self) -> tuple[str, ...]:
        """Addresses of the swarm, whether they can be reached or not."""
        return self._place.bootstrap if self._place else self._known()

    def _known(self) -> tuple[str, ...]:
        return known_peers(self._said, self._home, self._paths)

    async def keep(self) -> None:
        """Stays in the swarm until it is cancelled."""
        while True:
            known = self._known()
            try:
                with unwrapped():
                    if self._founding.is_set() or not (known or self._mdns or self._home):
                        await self._found()
                    else:
                        await self._join(known)
            except EdgeError as error:
                self._failed(error)
            except Exception as error:
                # The hosts that were started here are not to end by it.
                log.exception("the console's place in the swarm is lost")
                self._failed(EdgeError(f"looking at the swarm failed: {error!r}"))
            with trio.move_on_after(RETRY_S):
                await self._founding.wait()

    def _failed(self, error: EdgeError) -> None:
        self._place, self._error = None, error
        self._watcher.trouble(error)

    async def _join(self, known: tuple[str, ...]) -> None:
        name = self._home.name if self._home else ""
        require_peers(known, self._home, self._paths, mdns=self._mdns)
        async with joined_swarm(known, self._paths, mdns=self._mdns, swarm=name) as network:
            self._place, self._error = Place(known, self._mdns, name), None
            await self._watcher.look(network, known, among_others=True)

    async def _found(self) -> None:
        """A swarm of this machine."""
        config = NodeConfig(identity=Identity.generate(), listen=("/ip4/127.0.0.1/tcp/0",))
        async with open_node(config) as network:
            own = network.addresses[:1]
            # So that other commands on this machine find it, too; only for as long as it is there.
            if not bootstrap_peers((), self._paths.state):
                remember(own, self._paths.state)
            try:
                self._place, self._error = Place(own, False), None
                await self._watcher.look(network, own)
            finally:
                forget(own, self._paths.state)

    async def place(self) -> Place:
        """For a host or a session to be started. Founds a swarm where the remembered one cannot be reached.

        Raises Unavailable where the one that was asked for cannot.
        """
        with trio.move_on_after(PLACE_S):
            while True:
                if self._place is not None:
                    return self._place
                if self._error is not None and self._mdns:
                    # Whoever is started here is found by multicast, and then there is a swarm.
                    return Place((), True)
                if self._error is not None and self._is_demanded:
                    raise Unavailable(f"there is no swarm to join: {self._error}", remedy=self._error.remedy)
                if self._error is not None:
                    self._founding.set()
                await trio.sleep(0.1)
        raise Unavailable("the swarm is not joined yet", remedy="try again in a moment")
