"""`edgellm host`: lend this machine's devices."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from edgellm.cli import _options as options
from edgellm.cli._output import say
from edgellm.errors import UsageError
from edgellm.types.quantity import format_bytes, parse_bytes

if TYPE_CHECKING:
    from edgellm.hosting.options import HostOptions
    from edgellm.hosting.service import HostSummary


def host(
    model: Annotated[
        list[str],
        typer.Option(
            "--model", "-m", metavar="MODEL", help="A directory or a Hugging Face id. May be repeated."
        ),
    ],
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen", metavar="MULTIADDR", help="Where to listen. Default: /ip4/0.0.0.0/tcp/4001."
        ),
    ] = None,
    bootstrap: options.Bootstrap = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices", help="GPUs to lend, as 0,2; on a CPU, how many devices it counts as. Default: all."
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Lend at most this much, for example 6GiB. Default: what is free.",
        ),
    ] = None,
    max_leases: Annotated[int, typer.Option("--max-leases", min=1, help="Requesters served at once.")] = 1,
    name: Annotated[str, typer.Option("--name", help="What others see. Default: the machine's name.")] = "",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads that engines may use. Default: all.")
    ] = None,
    network: Annotated[
        list[options.Fabric] | None,
        typer.Option(
            "--network", help="Fabrics to offer: overlay (default), direct for a trusted LAN. Repeatable."
        ),
    ] = None,
    isolation: options.IsolationOption = options.Isolation.BWRAP,
    overlay_port: Annotated[
        int,
        typer.Option(
            "--overlay-port", min=0, max=65535, help="TCP port for a cluster's own connections. Default: any."
        ),
    ] = 0,
    kv_quota: Annotated[
        str | None,
        typer.Option(
            "--kv-quota",
            metavar="SIZE",
            help="Disk for KV blocks of those who ask, for example 20GiB; 0: none. Default: a tenth of what is free, at most "
            "20GiB.",
        ),
    ] = None,
    ipfs: Annotated[
        str | None,
        typer.Option(
            "--ipfs",
            metavar="MULTIADDR",
            help="Let an IPFS daemon (Kubo) keep them, for example /ip4/127.0.0.1/tcp/5001.",
        ),
    ] = None,
    mdns: options.Mdns = False,
    announce: Annotated[
        list[str] | None,
        typer.Option(
            "--announce", metavar="MULTIADDR", help="Tell others this address (a forwarded port). Repeatable."
        ),
    ] = None,
    relay: Annotated[
        list[str] | None,
        typer.Option(
            "--relay",
            metavar="MULTIADDR",
            help="Be reached through this peer (`edgellm relay`). Default: those that are found, where it takes one.",
        ),
    ] = None,
    upnp: Annotated[
        bool,
        typer.Option("--upnp/--no-upnp", help="Ask the router for ports that lead here (UPnP, NAT-PMP)."),
    ] = True,
    grace: Annotated[
        float,
        typer.Option("--grace", min=0.0, metavar="SECONDS", help="What running leases get after Ctrl-C."),
    ] = 30.0,
) -> None:
    """Lend this machine's devices for a model.

    Requesters' code runs in a sandbox: it sees the model and nothing else of this machine, and no network but its cluster's.
    Ctrl-C stops lending: no new leases, running ones get a grace period; Ctrl-C again ends them now.

    Examples:

      edgellm host --model Qwen/Qwen3-8B

      edgellm host --model ./my-model --memory 6GiB --bootstrap /ip4/192.168.1.7/tcp/4001/p2p/12D3Koo...
    """
    from edgellm.discovery.bootstrap import bootstrap_peers
    from edgellm.hosting.options import HostOptions
    from edgellm.paths import default_paths

    paths = default_paths()
    if overlay_port and max_leases > 1:
        raise UsageError(
            "one --overlay-port serves one lease at a time", remedy="leave out --overlay-port or --max-leases"
        )
    if ipfs and kv_quota is not None:
        raise UsageError(
            "--kv-quota is for the disk of this host, and with --ipfs a daemon keeps the blocks",
            remedy="leave out --kv-quota, and limit the daemon: ipfs config Datastore.StorageMax 20GB",
        )
    host_options = HostOptions(
        models=tuple(model),
        listen=tuple(listen or ("/ip4/0.0.0.0/tcp/4001",)),
        bootstrap=bootstrap_peers(bootstrap or (), paths.state),
        devices=devices,
        memory_bytes=parse_bytes(memory) if memory is not None else None,
        max_leases=max_leases,
        name=name,
        fabrics=tuple(fabric.value for fabric in network) if network else ("overlay",),
        isolation=isolation.value,
        threads=threads,
        mdns=mdns,
        announce=tuple(announce or ()),
        relays=tuple(relay or ()),
        map_ports=upnp,
        overlay_port=overlay_port,
        kv_quota_bytes=parse_quota(kv_quota),
        ipfs=ipfs or "",
        grace_s=grace,
    )
    _run(host_options)


def parse_quota(text: str | None) -> int | None:
    """Bytes; None where nothing was said. Raises UsageError."""
    if text is None:
        return None
    return 0 if text.strip() in ("0", "none") else parse_bytes(text)


def _run(host_options: HostOptions) -> None:
    import trio

    from edgellm.errors import unwrapped
    from edgellm.hosting.service import run_host
    from edgellm.paths import default_paths

    stop = trio.Event()
    ready = trio.Event()

    def tell(summary: HostSummary) -> None:
        ready.set()
        show_summary(summary)

    async def work() -> None:
        with unwrapped(), trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:

                async def listen_to_owner() -> None:
                    async for _ in signals:
                        if stop.is_set() or not ready.is_set():
                            # A second Ctrl-C, or there is nothing to drain yet.
                            nursery.cancel_scope.cancel()
                        stop.set()

                nursery.start_soon(listen_to_owner)
                await run_host(host_options, default_paths(), stop=stop, on_step=_step, on_ready=tell)
                nursery.cancel_scope.cancel()

    trio.run(work)
    say("stopped: nothing is lent any more")


def _step(line: str) -> None:
    say(f"[dim]{escape(line)}[/]")


def show_summary(summary: HostSummary) -> None:
    """What is lent, under which id, and how to reach it."""
    say(f"[bold green]hosting[/] as [bold]{escape(summary.name)}[/]")
    for offer in summary.models:
        say(
            f"  model    {escape(offer.name)}: {offer.layers} layers, {format_bytes(offer.weights_bytes)}, "
            f"{offer.max_context} tokens, digest {offer.digest[:12]}"
        )
    for device in summary.devices:
        say(
            f"  lends    {device.kind} {device.id}: {escape(device.name)}, {format_bytes(device.memory_bytes)}, measured "
            f"{device.bandwidth_bytes_s / 1e9:.0f} GB/s, {device.flops / 1e12:.2f} TFLOP/s"
        )
    say(f"  engine   {escape(str(summary.engine))}")
    say(f"  peer id  {summary.peer}")
    for address in summary.addresses:
        say(f"  address  {address}")
    if summary.reached is not None:
        say(f"  reached  {escape(str(summary.reached))}")
    say(
        f"join through it: [bold]--bootstrap {summary.addresses[0]}[/]"
        if summary.addresses
        else "it is not reachable"
    )
