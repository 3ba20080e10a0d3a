"""`edgellm relay`: carry connections for hosts that nobody can connect to directly."""

from __future__ import annotations

from typing import Annotated

import typer

from edgellm.cli import _options as options
from edgellm.cli._output import say
from edgellm.types.quantity import format_bytes, parse_bytes


def relay(
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen", metavar="MULTIADDR", help="Where to listen. Default: /ip4/0.0.0.0/tcp/4001."
        ),
    ] = None,
    swarm: options.Swarm = None,
    bootstrap: options.Bootstrap = None,
    announce: Annotated[
        list[str] | None,
        typer.Option(
            "--announce", metavar="MULTIADDR", help="Tell others this address (a forwarded port). Repeatable."
        ),
    ] = None,
    reservations: Annotated[
        int, typer.Option("--reservations", min=1, help="Hosts that may be reached through it.")
    ] = 256,
    circuits: Annotated[int, typer.Option("--circuits", min=1, help="Connections at once, in all.")] = 128,
    peer_circuits: Annotated[
        int, typer.Option("--peer-circuits", min=1, help="Connections at once of one peer.")
    ] = 16,
    duration: Annotated[
        float, typer.Option("--duration", min=0.01, metavar="HOURS", help="How long a connection may last.")
    ] = 2.0,
    circuit_bytes: Annotated[
        str, typer.Option("--circuit-bytes", metavar="SIZE", help="What one connection may carry.")
    ] = "4GiB",
    peer_bytes: Annotated[
        str,
        typer.Option("--peer-bytes", metavar="SIZE", help="What one peer may send and receive in an hour."),
    ] = "8GiB",
    total_bytes: Annotated[
        str, typer.Option("--total-bytes", metavar="SIZE", help="What all may send and receive in an hour.")
    ] = "64GiB",
) -> None:
    """Run a relay: hosts behind routers are reached through it. It lends nothing and cannot read what it carries.

    It needs an address at which everybody can connect to it. Every IP address has as much as eight peers. Two peers whose
    routers allow it only meet through it and then connect directly.

    Examples:

      edgellm relay

      edgellm relay --bootstrap /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo... --peer-bytes 1GiB --duration 1
    """
    import trio

    from edgellm.cli._run import run_interruptibly
    from edgellm.discovery.bootstrap import bootstrap_peers
    from edgellm.p2p.identity import exclusive_identity
    from edgellm.p2p.node import NodeConfig
    from edgellm.p2p.relay_limits import Allowance, RelayLimits
    from edgellm.paths import default_paths
    from edgellm.swarms.chosen import chosen_swarm
    from edgellm.swarms.member_node import open_swarm_node

    limits = RelayLimits(
        reservations=reservations,
        circuits=circuits,
        hour_bytes=parse_bytes(total_bytes),
        each=Allowance(
            circuits=peer_circuits,
            circuit_s=duration * 3600,
            circuit_bytes=parse_bytes(circuit_bytes),
            hour_bytes=parse_bytes(peer_bytes),
        ),
    )
    paths = default_paths()
    home = chosen_swarm(swarm, paths)
    peers = bootstrap_peers(bootstrap or (), paths.state) if bootstrap else ()

    async def work() -> None:
        with exclusive_identity(home.identity if home else paths.identity) as identity:
            config = NodeConfig(
                identity=identity,
                listen=tuple(listen or ("/ip4/0.0.0.0/tcp/4001",)),
                announce=tuple(announce or ()),
                bootstrap=peers,
                serve_relay=True,
                relay_limits=limits,
            )
            async with open_swarm_node(config, home) as network:
                say(
                    f"[bold green]relay[/] is up: {reservations} hosts, {circuits} connections; a peer has {peer_circuits} "
                    f"connections of {duration:g} h and {format_bytes(limits.each.circuit_bytes)}, and "
                    f"{format_bytes(limits.each.hour_bytes)} an hour"
                )
                for address in network.addresses:
                    say(f"be reached through it: [bold]--relay {address}[/]")
                say("hosts that have joined the same swarm find it by themselves")
                await trio.sleep_forever()

    try:
        run_interruptibly(work)
    except KeyboardInterrupt:
        say("stopped")
