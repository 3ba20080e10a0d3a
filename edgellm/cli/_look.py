"""What `peers` and `models` have in common: join for a moment and ask every host for its advert."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgellm.cli._output import say

if TYPE_CHECKING:
    from edgellm.discovery.collect import Found


def look(bootstrap: list[str] | None) -> Found:
    """What every host that the swarm lists says of itself now. Raises DiscoveryError when no bootstrap peer answers."""
    from edgellm.cli._run import run_interruptibly
    from edgellm.discovery.bootstrap import remember, require_bootstrap
    from edgellm.discovery.collect import SequenceBook, find_hosts
    from edgellm.p2p.identity import Identity
    from edgellm.p2p.node import NodeConfig, open_node
    from edgellm.paths import default_paths

    paths = default_paths()
    peers = require_bootstrap(bootstrap or (), paths.state)
    results: list[Found] = []

    async def work() -> None:
        config = NodeConfig(identity=Identity.generate(), listen=(), bootstrap=peers, dht_server=False)
        async with open_node(config) as network:
            remember(peers, paths.state)
            results.append(await find_hosts(network, None, book=SequenceBook(), now=time.time))

    run_interruptibly(work)
    return results[0]


def tell_refused(found: Found) -> None:
    """One line on what was listed and not believed, if anything was."""
    if found.refused:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(found.refused.items()))
        say(f"[dim]{found.listed} listed; not shown: {why}[/]")
