"""What `peers` and `models` have in common: join for a moment and ask every host for its advert."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgellm.cli._output import say

if TYPE_CHECKING:
    from edgellm.discovery.collect import Found


def look(bootstrap: list[str] | None, *, mdns: bool, swarm: str | None) -> Found:
    """What every host that the swarm lists says of itself now. Raises DiscoveryError when no peer answers."""
    from edgellm.cli._run import run_interruptibly
    from edgellm.discovery.collect import SequenceBook, find_hosts
    from edgellm.paths import default_paths
    from edgellm.requester.open import joined_swarm
    from edgellm.swarms.chosen import chosen_name, require_peers, swarm_called

    paths = default_paths()
    name = chosen_name(swarm, paths)
    peers = require_peers(bootstrap or (), swarm_called(name, paths), paths, mdns=mdns)
    results: list[Found] = []

    async def work() -> None:
        async with joined_swarm(peers, paths, mdns=mdns, swarm=name) as network:
            results.append(await find_hosts(network, None, book=SequenceBook(), now=time.time))

    run_interruptibly(work)
    return results[0]


def tell_refused(found: Found) -> None:
    """One line on what was listed and not believed, if anything was."""
    if found.refused:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(found.refused.items()))
        say(f"[dim]{found.listed} listed; not shown: {why}[/]")
