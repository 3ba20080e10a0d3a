"""`edgellm bootstrap`: a meeting point that lends nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from edgellm.cli import _options as options
from edgellm.cli._output import say


def bootstrap(
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen", metavar="MULTIADDR", help="Where to listen. Default: /ip4/0.0.0.0/tcp/4001."
        ),
    ] = None,
    swarm: options.Swarm = None,
    bootstrap: options.Bootstrap = None,
    relay: Annotated[
        bool,
        typer.Option("--relay", help="Also carry connections for hosts that nobody can connect to directly."),
    ] = False,
) -> None:
    """Run a peer that others join the swarm through; it lends nothing.

    Any host serves as a meeting point too; this is for a machine that is always on and has nothing to lend. On the machine that
    made a private swarm it also redeems invites and renews memberships.

    Example:

      edgellm bootstrap --listen /ip4/0.0.0.0/tcp/4001

      edgellm bootstrap --swarm lab
    """
    import trio

    from edgellm.cli._run import run_interruptibly
    from edgellm.discovery.bootstrap import bootstrap_peers
    from edgellm.errors import unwrapped
    from edgellm.p2p.identity import exclusive_identity
    from edgellm.p2p.node import NodeConfig
    from edgellm.paths import default_paths
    from edgellm.swarms.chosen import chosen_swarm
    from edgellm.swarms.member_node import open_swarm_node

    paths = default_paths()
    peers = bootstrap_peers(bootstrap or (), paths.state) if bootstrap else ()
    home = chosen_swarm(swarm, paths)

    async def work() -> None:
        with exclusive_identity(home.identity if home else paths.identity) as identity, unwrapped():
            config = NodeConfig(
                identity=identity,
                listen=tuple(listen or ("/ip4/0.0.0.0/tcp/4001",)),
                bootstrap=peers,
                serve_relay=relay,
            )
            async with open_swarm_node(config, home) as network:
                say(f"[bold green]meeting point[/] is up{f' in swarm [bold]{home.name}[/]' if home else ''}")
                for address in network.addresses:
                    say(f"join through it: [bold]--bootstrap {address}[/]")
                await trio.sleep_forever()

    try:
        run_interruptibly(work)
    except KeyboardInterrupt:
        say("stopped")
