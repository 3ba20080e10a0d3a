"""Makes a requester: joins the swarm under a fresh identity and has this machine ready for a head."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from edgellm.cells.spec import Isolation
from edgellm.cluster.member import CellMachine, usable_threads
from edgellm.cluster.scratch import sweep
from edgellm.cluster.switchboard import Switchboard
from edgellm.discovery.bootstrap import remember
from edgellm.discovery.collect import SequenceBook
from edgellm.discovery.known_hosts import KnownHosts
from edgellm.engine.registry import load_backend
from edgellm.errors import DiscoveryError
from edgellm.models.light import LightStore
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import Network
from edgellm.p2p.node import NodeConfig
from edgellm.paths import Paths
from edgellm.requester.cluster import Requester
from edgellm.requester.kv import open_kv
from edgellm.swarms.chosen import swarm_called
from edgellm.swarms.member_node import open_swarm_node
from edgellm.trust.book import TrustBook
from edgellm.trust.ledger import Ledger

MDNS_TIMEOUT_S = 8.0
MDNS_SETTLE_S = 1.5


@dataclass(frozen=True, slots=True)
class RequesterOptions:
    bootstrap: tuple[str, ...]
    mdns: bool = False
    isolation: Isolation = "bwrap"
    backend: str = "vllm"
    kv_scope: str | None = None
    """"session", "swarm" or "public": who can read what clusters share of their KV cache; None: they share nothing."""
    kv_least_prompt_tokens: int = 0
    """`edgellm.requester.kv.KvRequester.least_prompt_tokens`."""
    check_share: float = 0.0
    """`edgellm.trust.book.TrustBook.share`."""
    swarm: str = ""
    """What this user calls the private swarm to ask in; empty: the open one."""


@asynccontextmanager
async def open_requester(options: RequesterOptions, paths: Paths) -> AsyncIterator[Requester]:
    """A requester in the swarm; it leaves when the context ends.

    Raises DiscoveryError when no bootstrap peer answers, EngineError when no backend is installed, MembershipError where this
    machine is no member, or no longer.
    """
    backend = load_backend(options.backend)
    backend.versions()
    sweep(paths.runtime)
    async with (
        joined_swarm(options.bootstrap, paths, mdns=options.mdns, swarm=options.swarm) as network,
        AsyncExitStack() as stack,
    ):
        kv = None
        if options.kv_scope:
            kv = stack.enter_context(
                open_kv(network, paths, options.kv_scope, options.kv_least_prompt_tokens, options.swarm)
            )
        yield Requester(
            network=network,
            switchboard=Switchboard(network),
            machine=CellMachine(backend, paths.runtime, usable_threads(), options.isolation),
            store=LightStore(paths.cache / "models"),
            book=SequenceBook(known=KnownHosts(paths.state / "hosts.json", options.bootstrap)),
            now=time.time,
            kv=kv,
            trust=TrustBook(Ledger(paths.state), options.check_share),
        )


@asynccontextmanager
async def joined_swarm(
    bootstrap: tuple[str, ...], paths: Paths, *, mdns: bool, swarm: str = ""
) -> AsyncIterator[Network]:
    """A peer that asks and lends nothing, connected to the swarm. Raises DiscoveryError when nobody answers.

    Its identity is made for this time only, so that hosts of the open swarm cannot tell two questions of one person together.
    In a private one its member vouches for it.
    """
    home = swarm_called(swarm, paths)
    config = NodeConfig(
        identity=Identity.generate(), listen=(), bootstrap=bootstrap, dht_server=False, mdns=mdns
    )
    async with open_swarm_node(config, home) as network:
        if bootstrap:
            remember(bootstrap, home.directory if home else paths.state)
        else:
            await _meet_somebody(network)
        yield network


async def _meet_somebody(network: Network) -> None:
    """Waits until multicast has found a peer. Raises DiscoveryError when there is none on this network."""
    with trio.move_on_after(MDNS_TIMEOUT_S):
        while not network.connected_peers():
            await trio.sleep(0.1)
        # Others answer the same question at about the same time; peers that only just met know little of each other.
        await trio.sleep(MDNS_SETTLE_S)
        return
    raise DiscoveryError(
        f"no peer answered on the local network within {MDNS_TIMEOUT_S:g} s",
        remedy="start hosts with --mdns, or give an address: --bootstrap ADDRESS",
    )
