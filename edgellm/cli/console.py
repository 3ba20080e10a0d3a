"""`edgellm console`: the swarm, the sessions and hosts of this machine in a browser."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from edgellm.cli import _options as options
from edgellm.cli._output import say
from edgellm.errors import UsageError

if TYPE_CHECKING:
    import trio

    from edgellm.console.guard import Rules
    from edgellm.console.standalone import Console

PORT = 8643


def console(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Where to serve; 0: any port that is free.")
    ] = PORT,
    bind: Annotated[
        str,
        typer.Option(
            "--bind", metavar="ADDRESS", help="Address to serve on; another than loopback demands a token."
        ),
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="TOKEN",
            envvar="EDGELLM_CONSOLE_TOKEN",
            help="What whoever uses it must say. In the variable, other users of this machine do not see it.",
        ),
    ] = None,
    swarm: options.Swarm = None,
    bootstrap: options.Bootstrap = None,
    mdns: options.Mdns = False,
    isolation: options.IsolationOption = options.Isolation.BWRAP,
    open_: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open it in a browser. Default: where there is a desktop."),
    ] = None,
) -> None:
    """Show the swarm, sessions and hosts in a browser, and start them there; prints its URL.

    Hosts that are started in it end with it, sessions stay. Where no swarm is known, it makes one on this machine, and hosts
    and sessions started in it join that: so all of it can be tried alone.

    Examples:

      edgellm console

      EDGELLM_CONSOLE_TOKEN=$(openssl rand -hex 16) edgellm console --bind 192.168.1.7
    """
    import trio

    from edgellm.console.serving import bind_address, open_port
    from edgellm.console.standalone import ConsoleOptions
    from edgellm.errors import unwrapped
    from edgellm.paths import default_paths
    from edgellm.swarms.chosen import chosen_name

    address, is_loopback = bind_address(bind)
    require_token(token, is_loopback=is_loopback)
    paths = default_paths()
    wanted = ConsoleOptions(tuple(bootstrap or ()), mdns, chosen_name(swarm, paths), isolation.value)
    with open_port(address, port) as listening, unwrapped():
        own_port = listening.getsockname()[1]
        rules = replace(make_rules(address, own_port, token), only_own_user=token is None)
        urls = urls_of(address, own_port)

        async def work() -> None:
            from edgellm.console.app import create_app
            from edgellm.console.serving import serve
            from edgellm.console.standalone import open_console

            serving = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                with serving:
                    async with open_console(wanted, paths) as opened:
                        nursery.start_soon(_until_stopped, serving, opened)
                        _tell(urls, is_loopback=is_loopback)
                        if open_ or (open_ is None and _has_desktop()):
                            nursery.start_soon(_browse, urls[0])
                        await serve(create_app(opened.sources, rules), listening)
                nursery.cancel_scope.cancel()

        trio.run(work)
    say("stopped")


def require_token(token: str | None, *, is_loopback: bool) -> None:
    """Raises UsageError where a token is missing, or none that protects."""
    from edgellm.console.guard import MIN_TOKEN_CHARACTERS

    make = "make one: export EDGELLM_CONSOLE_TOKEN=$(openssl rand -hex 16)"
    if token is None:
        if not is_loopback:
            raise UsageError(
                "whoever reaches this address could start programs here: a console on it needs a token",
                remedy=make,
            )
        return
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("a token has printable ASCII characters and no blanks", remedy=make)
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise UsageError(f"a token has {MIN_TOKEN_CHARACTERS} characters or more", remedy=make)


def make_rules(address: str, port: int, token: str | None) -> Rules:
    """Who is let in at a console that listens there."""
    import secrets

    from edgellm.console.guard import Rules, hosts_of
    from edgellm.console.serving import own_names

    return Rules(
        hosts=hosts_of(own_names(address), port),
        token=token,
        cookie=f"edgellm-console-{port}",
        cookie_value=secrets.token_urlsafe(32) if token else "",
    )


def urls_of(address: str, port: int) -> tuple[str, ...]:
    """Of a console that listens there; the first one works on this machine."""
    import ipaddress

    from edgellm.console.serving import machine_addresses

    hosts = [address]
    listens_on = ipaddress.ip_address(address)
    if listens_on.is_unspecified:
        others = [ipaddress.ip_address(one) for one in machine_addresses()]
        hosts = ["127.0.0.1" if listens_on.version == 4 else "::1"]
        hosts += [
            str(one)
            for one in others
            if one.version == listens_on.version and not one.is_loopback and not one.is_link_local
        ]
    return tuple(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/" for host in hosts)


def _tell(urls: tuple[str, ...], *, is_loopback: bool) -> None:
    say("[bold green]console[/] is up; Ctrl-C ends it and the hosts started in it")
    if not is_loopback:
        say(
            "[yellow]the token and all that is shown travel unencrypted:[/] use it in a network that you trust, or through an "
            "SSH tunnel"
        )
    for url in urls:
        print(url, flush=True)


async def _until_stopped(serving: trio.CancelScope, opened: Console) -> None:
    import trio

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if serving.cancel_called:
                opened.hosts.hurry()
                continue
            running = sum(host.state != "ended" for host in opened.sources.hosts.all())
            if running:
                say(f"[dim]ending {running} host{'s' * (running != 1)} (Ctrl-C again ends them now)[/]")
            serving.cancel()


async def _browse(url: str) -> None:
    import webbrowser

    import trio

    await trio.to_thread.run_sync(webbrowser.open, url, abandon_on_cancel=True)


def _has_desktop() -> bool:
    """Else a browser for terminals may be started, over what is printed here."""
    known = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.stderr.isatty() and any(os.environ.get(name) for name in known)
