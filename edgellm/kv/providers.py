"""Who has anything of a scope that several requesters share: one provider key in the DHT for each scope and epoch.

Never one for each chunk: the DHT takes ten records of a peer in ten seconds, and keeps them for a day. The epoch is in the key,
so that who left is not asked for long, and an observer who does not know the scope's id cannot follow a scope over time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import structlog
import trio

from edgellm.errors import EdgeError
from edgellm.p2p.network import Network, PeerAddress

log = structlog.get_logger(__name__)

EPOCH_S = 3600.0
LOOK_EVERY_S = 30.0
LOOK_S = 10.0
MAX_PROVIDERS = 8
"""Asked in one question; each may take some of the time that there is."""
MAX_SCOPES = 64


def scope_key(scope: bytes, epoch: int) -> str:
    """Under 80 bytes, which is all that py-libp2p takes."""
    return "/edgellm/kv/1/" + hashlib.sha256(scope + epoch.to_bytes(8, "big")).hexdigest()[:40]


class Providers:
    """Keeps this node's provider records, and a list of the others', for scopes that are not one requester's alone.

    Looking into the DHT takes seconds, so it is done by `run`, beside all questions.
    """

    def __init__(self, network: Network, now: Callable[[], float]) -> None:
        self._network = network
        self._now = now
        self._held: set[bytes] = set()
        self._followed: dict[bytes, int] = {}
        self._provided: set[str] = set()
        self._known: dict[bytes, tuple[PeerAddress, ...]] = {}
        self._changed = trio.Event()

    def have(self, scope: bytes) -> None:
        """This node has something of `scope` from now on."""
        if scope not in self._held and len(self._held) < MAX_SCOPES:
            self._held.add(scope)
            self._changed.set()

    def has(self, scope: bytes) -> bool:
        return scope in self._held

    def follow(self, scope: bytes) -> None:
        """Looks for others until `unfollow`."""
        self._followed[scope] = self._followed.get(scope, 0) + 1
        self._changed.set()

    def unfollow(self, scope: bytes) -> None:
        self._followed[scope] -= 1
        if not self._followed[scope]:
            del self._followed[scope]
            self._known.pop(scope, None)

    def of(self, scope: bytes) -> tuple[PeerAddress, ...]:
        """Others that said that they have something of `scope`, as far as that was found out."""
        return self._known.get(scope, ())

    async def run(self) -> None:
        """Announces and looks until it is cancelled."""
        while True:
            self._changed = trio.Event()
            epoch = int(self._now() // EPOCH_S)
            try:
                await self._announce(epoch)
                for scope in tuple(self._followed):
                    await self._look(scope, epoch)
            except EdgeError as error:
                log.info("the DHT does not tell who shares KV pieces", error=str(error))
            with trio.move_on_after(LOOK_EVERY_S if self._held or self._followed else float("inf")):
                await self._changed.wait()

    async def _announce(self, epoch: int) -> None:
        current = {scope_key(scope, epoch) for scope in self._held}
        for key in self._provided - current:
            self._network.withdraw(key)
        for key in sorted(current - self._provided):
            await self._network.provide(key)
        self._provided = current

    async def _look(self, scope: bytes, epoch: int) -> None:
        found: dict[str, PeerAddress] = {}
        with trio.move_on_after(LOOK_S):
            for key in (scope_key(scope, epoch), scope_key(scope, epoch - 1)):
                for provider in await self._network.find_providers(key):
                    if provider.peer != self._network.peer:
                        found.setdefault(provider.peer, provider)
        if scope in self._followed:
            self._known[scope] = tuple(found.values())[:MAX_PROVIDERS]
