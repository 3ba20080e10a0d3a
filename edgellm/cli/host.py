"""`edgellm host`: lend this machine's devices, and have them back for a while."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from edgellm.cli import _options as options
from edgellm.cli._output import say
from edgellm.errors import LeaseError, UsageError
from edgellm.types.quantity import format_bytes, format_duration, parse_bytes, parse_duration

if TYPE_CHECKING:
    from pathlib import Path

    from edgellm.hosting.control import HostStatus
    from edgellm.hosting.options import HostOptions
    from edgellm.hosting.service import HostSummary
    from edgellm.paths import Paths

FREED_S = 15.0
"""What a host may take to end a cell whose time is over."""
POLL_S = 0.3


app = typer.Typer(invoke_without_command=True)


@app.callback()
def host(
    invocation: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="A directory or a Hugging Face id. Required; may be repeated.",
        ),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen", metavar="MULTIADDR", help="Where to listen. Default: /ip4/0.0.0.0/tcp/4001."
        ),
    ] = None,
    swarm: options.Swarm = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="PEER,…",
            help="Lend to these members only (`edgellm swarm members` shows their ids). May be repeated.",
        ),
    ] = None,
    allow_members: Annotated[
        bool, typer.Option("--allow-members", help="Lend to all members of the private swarm: the default.")
    ] = False,
    allow_anyone: Annotated[
        bool,
        typer.Option("--allow-anyone", help="Lend to whoever reaches this host, in the open swarm, too."),
    ] = False,
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
    quota: Annotated[
        str | None,
        typer.Option(
            "--quota",
            metavar="QUOTA",
            help="Lend no more than this, for example 2h/day,1e6tok/day,10GB/day; 30min/day/member for each member. Default: "
            "all that is asked for.",
        ),
    ] = None,
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
        typer.Option(
            "--grace", min=0.0, metavar="SECONDS", help="What running leases get after Ctrl-C and in a pause."
        ),
    ] = 30.0,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            metavar="TIME",
            help="Stop then: 18:00 (the next such time), 2h, or 2026-05-01T18:00. Requesters know it beforehand.",
        ),
    ] = None,
) -> None:
    """Lend this machine's devices for a model.

    Requesters' code runs in a sandbox: it sees the model and nothing else of this machine, and no network but its cluster's.
    Ctrl-C stops lending: no new leases, running ones get a grace period; Ctrl-C again ends them now. When you need the machine
    for a while, say `edgellm host pause` in another terminal.

    In a private swarm its members may lease. The open one has no members: say --allow-anyone there.

    Examples:

      edgellm host --model Qwen/Qwen3-8B --swarm lab

      edgellm host --model Qwen/Qwen3-8B --until 18:00

      edgellm host pause --for 2h

      edgellm host --model ./my-model --memory 6GiB --allow-anyone --bootstrap /ip4/192.168.1.7/tcp/4001/p2p/12D3Koo...
    """
    if invocation.invoked_subcommand is not None:
        return
    if not model:
        raise UsageError("missing option '--model' / '-m'", remedy="see `edgellm host --help`")
    from edgellm.discovery.bootstrap import bootstrap_peers
    from edgellm.hosting.hours import parse_until
    from edgellm.hosting.options import HostOptions
    from edgellm.hosting.quota import parse_lending_quota
    from edgellm.leasing.policy import chosen_policy
    from edgellm.paths import default_paths
    from edgellm.swarms.chosen import chosen_swarm

    ends_at = None if until is None else parse_until(until, _now())
    paths = default_paths()
    home = chosen_swarm(swarm, paths)
    allowances = parse_lending_quota(quota) if quota is not None else ()
    if network and options.Fabric.DIRECT in network and any(part.kind == "bytes" for part in allowances):
        raise UsageError(
            "with --network direct a cell's bytes are not counted",
            remedy="give the --quota in time or tokens, or leave out --network direct",
        )
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
        bootstrap=bootstrap_peers(bootstrap or (), home.directory if home else paths.state),
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
        quota=allowances,
        grace_s=grace,
        until=ends_at,
        swarm=home.name if home else "",
        policy=chosen_policy(
            parse_peers(allow or ()), members=allow_members, anyone=allow_anyone, is_private=home is not None
        ),
    )
    if allow and home is None:
        say(
            "[yellow]--allow names members of a private swarm:[/] in the open one a requester has a new id for each question"
        )
    _run(host_options)


Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Which host, where several run here: its name, or the end of its peer id.",
    ),
]


@app.command()
def pause(
    for_: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="TIME", help="Lend again after 2h, 30m, 90s. Default: when `resume` is said."
        ),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(
            "--within", metavar="TIME", help="What running leases get. Default: the host's --grace."
        ),
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="They get nothing: all is free at once.")] = False,
    name: Name = None,
) -> None:
    """Take this machine back for a while: the running host lends nothing until it resumes.

    Requesters are told, and move to other hosts where there are any. Returns when memory and devices are free; Ctrl-C stops the
    waiting, not the pause.

    Examples:

      edgellm host pause

      edgellm host pause --for 2h --within 30s
    """
    from edgellm.hosting.control import Pause, tell
    from edgellm.paths import default_paths

    if now and within is not None:
        raise UsageError("--now and --within exclude each other", remedy="leave out one of them")
    order = Pause(
        within_s=0.0 if now else None if within is None else parse_duration(within),
        for_s=None if for_ is None else parse_duration(for_),
    )
    if order.for_s == 0:
        raise UsageError(
            "a pause for no time is none", remedy="leave out --for: it ends with `edgellm host resume`"
        )
    path = _find(default_paths(), name)
    status = tell(path, order)
    ends = (
        "when you say: edgellm host resume"
        if status.resumes_at is None
        else f"at {_clock(status.resumes_at)}"
    )
    say(f"[bold]{escape(status.name)}[/] is paused: it takes no new leases. It lends again {ends}")
    if status.leases:
        number = len(status.leases)
        left_s = max(0.0, (status.leases_end_at or 0.0) - time.time())
        say(f"{number} running lease{'s' if number > 1 else ''}: {left_s:.0f} s to move elsewhere, then gone")
        _await_free(path, left_s)
    say("[green]free[/]: nothing of this machine is lent")


@app.command()
def resume(name: Name = None) -> None:
    """Lend again after a pause."""
    from edgellm.hosting.control import Resume, Status, tell
    from edgellm.paths import default_paths

    path = _find(default_paths(), name)
    was = tell(path, Status()).state
    status = tell(path, Resume())
    say(
        f"[bold]{escape(status.name)}[/] lends "
        + ("again" if was == "paused" else "already: it was not paused")
    )


@app.command()
def status(name: Name = None, as_json: options.Json = False) -> None:
    """Show the hosts of this user that run on this machine: to whom they lend, and until when."""
    from edgellm.hosting.control import running, sockets, the_one
    from edgellm.paths import default_paths

    paths = default_paths()
    hosts = running(sockets(paths.runtime, paths.cache))
    if name is not None:
        wanted = the_one(hosts, name)
        hosts = [(path, shown) for path, shown in hosts if path == wanted]
    if as_json:
        import msgspec

        print(json.dumps([msgspec.to_builtins(shown) for _, shown in hosts], ensure_ascii=False))
        return
    if not hosts:
        say("no host of this user runs here")
    for _, shown in hosts:
        for line in status_lines(shown, time.time()):
            print(line)


def status_lines(status: HostStatus, now: float) -> list[str]:
    """How a host is, for people; the first line says the most."""
    state = status.state
    if status.state == "paused":
        state += (
            f" until {_clock(status.resumes_at)}"
            if status.resumes_at
            else " until you say: edgellm host resume"
        )
    elif status.until is not None:
        state += f" until {_clock(status.until)}"
    lines = [
        f"{status.name}: {state}",
        f"  models  {', '.join(status.models)}",
        f"  memory  {format_bytes(status.free_memory_bytes)} of {format_bytes(status.lent_memory_bytes)} free",
        f"  leases  {len(status.leases)} of {status.max_leases}",
    ]
    if status.leases and status.leases_end_at is not None:
        lines[-1] += f", ending in {format_duration(status.leases_end_at - now)}"
    for lease in status.leases:
        lines.append(
            f"    layers {lease.first_layer}-{lease.end_layer - 1} of {lease.model}, {format_bytes(lease.memory_bytes)}, "
            f"for …{lease.requester[-8:]} since {format_duration(now - lease.granted_at)}"
        )
    return lines


def _find(paths: Paths, name: str | None) -> Path:
    from edgellm.hosting.control import running, sockets, the_one

    return the_one(running(sockets(paths.runtime, paths.cache)), name)


def _await_free(path: Path, left_s: float) -> None:
    """Returns when the host has no lease any more. Raises LeaseError when it goes on having some long after it may."""
    from edgellm.hosting.control import Status, tell

    gives_up = time.monotonic() + left_s + FREED_S
    while tell(path, Status()).leases:
        if time.monotonic() > gives_up:
            raise LeaseError(
                f"a lease has not ended {FREED_S:g} s after it had to",
                remedy="stop the host with Ctrl-C twice, and please report this",
            )
        time.sleep(POLL_S)


def _clock(unix_s: float) -> str:
    from edgellm.hosting.hours import format_moment

    return format_moment(unix_s, _now())


def _now() -> datetime:
    return datetime.now().astimezone()


def parse_peers(said: Sequence[str]) -> tuple[str, ...]:
    """Peer ids, separated by commas, repeated or both. Raises UsageError for what is none."""
    from edgellm.p2p.identity import public_key_of_peer

    peers = tuple(peer.strip() for text in said for peer in text.split(",") if peer.strip())
    for peer in peers:
        try:
            public_key_of_peer(peer)
        except ValueError:
            raise UsageError(
                f"{peer!r} is no peer id", remedy="give ids as `edgellm swarm members` shows them: 12D3Koo..."
            ) from None
    return peers


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
        say(f"  lends to {host_options.policy.told(host_options.swarm)}")

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
    for line in summary.quota:
        say(f"  quota    {escape(line)}")
    say(f"  engine   {escape(str(summary.engine))}")
    say(f"  peer id  {summary.peer}")
    for address in summary.addresses:
        say(f"  address  {address}")
    if summary.until is not None:
        say(f"  until    {_clock(summary.until)}, in {format_duration(summary.until - time.time())}")
    if summary.reached is not None:
        say(f"  reached  {escape(str(summary.reached))}")
    say(
        f"join through it: [bold]--bootstrap {summary.addresses[0]}[/]"
        if summary.addresses
        else "it is not reachable"
    )
