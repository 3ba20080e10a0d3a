"""Makes a requester: joins the swarm under a fresh identity and has this machine ready for a head."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from edgellm.cells.spec import Isolation
from edgellm.cluster.member import CellMachine, usable_threads
from edgellm.cluster.switchboard import Switchboard
from edgellm.discovery.bootstrap import remember
from edgellm.discovery.collect import SequenceBook
from edgellm.engine.registry import load_backend
from edgellm.models.light import LightStore
from edgellm.p2p.identity import Identity
from edgellm.p2p.node import NodeConfig, open_node
from edgellm.paths import Paths
from edgellm.requester.ask import Requester


@dataclass(frozen=True, slots=True)
class RequesterOptions:
    bootstrap: tuple[str, ...]
    isolation: Isolation = "bwrap"
    backend: str = "vllm"


@asynccontextmanager
async def open_requester(options: RequesterOptions, paths: Paths) -> AsyncIterator[Requester]:
    """A requester in the swarm; it leaves when the context ends.

    Its identity is made for this time only, so that hosts cannot tell two questions of one person together. Raises
    DiscoveryError when no bootstrap peer answers, EngineError when no backend is installed.
    """
    backend = load_backend(options.backend)
    backend.versions()
    config = NodeConfig(
        identity=Identity.generate(), listen=(), bootstrap=options.bootstrap, dht_server=False
    )
    async with open_node(config) as network:
        remember(options.bootstrap, paths.state)
        yield Requester(
            network=network,
            switchboard=Switchboard(network),
            machine=CellMachine(backend, paths.runtime, usable_threads(), options.isolation),
            store=LightStore(paths.cache / "models"),
            book=SequenceBook(),
            now=time.time,
        )
