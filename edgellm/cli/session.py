"""`edgellm session`: keep a cluster open between questions."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgellm.cli import _options as options
from edgellm.cli._bringup import BringUpView
from edgellm.cli._crashed import as_text, crash_of, report_of_crashed
from edgellm.cli._output import errors, say, tables
from edgellm.types.quantity import parse_duration

if TYPE_CHECKING:
    from edgellm.sessions.client import SessionState
    from edgellm.wire.session_pb2 import Description

app = typer.Typer(help="Keep a cluster open between questions.", no_args_is_help=True)


@app.command("open")
def open_(
    model: options.Model,
    name: Annotated[str | None, typer.Option("--name", help="The session's name. Default: made up.")] = None,
    idle: Annotated[
        str, typer.Option("--idle", metavar="TIME", help="Close after so long without a request; 0: never.")
    ] = "15m",
    sequences: Annotated[
        int,
        typer.Option(
            "--sequences", min=1, help="Answers of full length that the KV cache shall hold at once."
        ),
    ] = 4,
    port: Annotated[
        int,
        typer.Option(
            "--port", min=0, max=65535, help="Of the endpoint on 127.0.0.1. Default: any that is free."
        ),
    ] = 0,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="EDGELLM_API_KEY",
            help="What clients of the endpoint must say. In the variable, other users of this machine do not see it. Default: "
            "whoever is on this machine may ask.",
        ),
    ] = None,
    tp: options.TensorParallel = None,
    pp: options.PipelineParallel = None,
    peers: options.Peers = None,
    context: options.Context = None,
    min_tok_s: options.MinTokS = None,
    max_load: options.MaxLoad = None,
    spares: options.Spares = 0,
    patience: options.Patience = "10m",
    silence: options.Silence = "4s",
    spot_check: options.SpotCheck = None,
    network: options.Network = options.Fabric.OVERLAY,
    isolation: options.IsolationOption = options.Isolation.BWRAP,
    kv_share: options.KvShare = None,
    kv_scope: options.KvScopeOption = options.KvScope.SESSION,
    swarm: options.Swarm = None,
    bootstrap: options.Bootstrap = None,
    mdns: options.Mdns = False,
    foreground: Annotated[
        bool,
        typer.Option(
            "--foreground", help="Stay, with a line that says how it is; Ctrl-C closes the session."
        ),
    ] = False,
    max_cost: Annotated[
        str,
        typer.Option(
            "--max-cost",
            metavar="TIME",
            help="Close once the hosts have lent so much time together (three hosts for 40 minutes: 2h); what runs then is "
            "finished. 0: no limit.",
        ),
    ] = "0",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the name and nothing else.")] = False,
) -> None:
    """Bring up a cluster and keep it; prints the session's name.

    Examples:

      edgellm session open --model Qwen/Qwen3-32B

      NAME=$(edgellm session open -q --model Qwen/Qwen3-32B --idle 2h); edgellm ask "Hello" --session $NAME

      edgellm session open --model Qwen/Qwen3-32B --port 8000 --foreground --max-cost 2h
    """
    import msgspec
    import psutil

    from edgellm.cli._foreground import ended_like_ctrl_c, stay
    from edgellm.gateway.guard import require_key
    from edgellm.paths import default_paths
    from edgellm.sessions.client import session_state, start_session
    from edgellm.sessions.daemon_order import Order
    from edgellm.sessions.registry import Registry
    from edgellm.swarms.chosen import chosen_name, require_peers, swarm_called

    paths = default_paths()
    idle_s, max_cost_s = parse_duration(idle), parse_duration(max_cost)
    require_key(api_key)
    swarm_name = chosen_name(swarm, paths)
    known = require_peers(bootstrap or (), swarm_called(swarm_name, paths), paths, mdns=mdns)
    registry = Registry.of(paths)
    chosen, files = registry.reserve(name)
    order = Order(
        name=chosen,
        model=model,
        directory=str(files.directory),
        bootstrap=known,
        mdns=mdns,
        idle_s=idle_s,
        isolation=isolation.value,
        tensor_parallel=tp,
        pipeline_parallel=pp,
        peers=tuple(peers or ()),
        fabric=network.value,
        context=context,
        sequences=sequences,
        min_tok_s=min_tok_s,
        max_load=max_load,
        spot_check=spot_check,
        kv_scope=options.kv_scope(bool(kv_share), kv_scope, network),
        port=port,
        api_key=api_key,
        max_cost_s=max_cost_s,
        spares=spares,
        patience_s=parse_duration(patience),
        silence_s=options.silence_s(silence),
        journal=str(files.journal),
        swarm=swarm_name,
    )
    if foreground:
        # Were it killed, nobody would be left to close the session.
        own = psutil.Process()
        order = msgspec.structs.replace(order, owner_pid=own.pid, owner_started=own.create_time())
    with ended_like_ctrl_c() if foreground else nullcontext():
        with BringUpView(errors, quiet=quiet) as view:
            start_session(registry, order, files, lambda line: view.note(line.who, line.phase, line.detail))
            elapsed_s = view.elapsed_s

        def tell() -> None:
            if not quiet:
                closes = f"; closes after {idle} without a request" if idle_s else ""
                say(f"[green]ready[/] in {elapsed_s:.1f} s{closes}")
                say(f'ask it: edgellm ask "PROMPT" --session {chosen}')
                state = session_state(registry, chosen)
                if state.description is not None:
                    say(f"or by any client of OpenAI's API: {state.description.endpoint}")
            print(chosen, flush=True)

        if foreground:
            stay(registry, chosen, tell, quiet=quiet)
        else:
            tell()


@app.command("list")
def list_(as_json: options.Json = False) -> None:
    """Show the open sessions of this user."""
    from edgellm.paths import default_paths
    from edgellm.sessions.client import list_sessions
    from edgellm.sessions.registry import Registry

    states = list_sessions(Registry.of(default_paths()))
    if as_json:
        print(json.dumps([report(state) for state in states], ensure_ascii=False))
        return
    if not states:
        say("no session is open")
        return
    shown = Table(box=None, header_style="bold")
    for column in ("NAME", "MODEL", "STATE", "RUNNING", "CLOSES IN", "ENDPOINT", "ROUTE"):
        shown.add_column(column)
    for state in states:
        entry = report(state)
        closes_in_s = entry["closes_in_s"]
        shown.add_row(
            escape(state.name),
            escape(str(entry["model"])),
            escape(str(entry["state"])),
            str(entry["running_requests"]),
            f"{closes_in_s:.0f} s" if isinstance(closes_in_s, float) else "-",
            escape(str(entry["endpoint"])),
            escape(str(entry["route"])),
        )
    tables.print(shown)
    for state in states:
        if state.story is None:
            continue
        if state.has_crashed:
            say(f"{state.name} crashed at {crash_of(state.story)}")
        say(f"[dim]bring it back:[/] edgellm session recover {state.name}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="The session's name.")], as_json: options.Json = False
) -> None:
    """Show one session: its endpoint, who runs which layers, when it closes."""
    from edgellm.paths import default_paths
    from edgellm.sessions.client import session_state
    from edgellm.sessions.registry import Registry

    entry = report(session_state(Registry.of(default_paths()), name))
    if as_json:
        print(json.dumps(entry, ensure_ascii=False))
        return
    shown = Table(box=None, show_header=False)
    for key, value in entry.items():
        shown.add_row(f"[bold]{key.replace('_', ' ')}[/]", escape(as_text(value, key)))
    tables.print(shown)


@app.command("chat")
def chat(
    name: Annotated[str, typer.Argument(help="The session's name.")],
    system: Annotated[str, typer.Option("--system", help="A system prompt.")] = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 1024,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, max=10.0, help="0 always takes the likeliest token.")
    ] = 0.7,
) -> None:
    """Chat with an open session in the terminal. /help lists what else can be said.

    Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves.
    """
    from edgellm.cli._chat import Chat, lines
    from edgellm.paths import default_paths
    from edgellm.sessions.client import gone, session_state
    from edgellm.sessions.conversation import Conversation
    from edgellm.sessions.registry import Registry
    from edgellm.types.request import Sampling

    paths = default_paths()
    registry = Registry.of(paths)
    state = session_state(registry, name)
    if state.description is None:
        raise gone(state, registry.files(name))
    model = state.description.model
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
    talk = Chat(registry, name, model, sampling, Conversation(system))
    say(f"[dim]{escape(model)} · /help lists commands, Ctrl-D leaves[/]")
    with lines(paths.state / "chat-history") as read:
        talk.run(read)


@app.command("swap")
def swap(
    name: Annotated[str, typer.Argument(help="The session's name.")],
    model: options.Model,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing unless it fails.")] = False,
) -> None:
    """Put another model behind a session. Its endpoint stays, and no connection is dropped.

    Requests that run are finished by the old cluster. The new one comes up beside it where the hosts have room for both; else
    new requests wait for it. Requests that still say the old model's name are answered by the new one.

    Examples:

      edgellm session swap amber-1f3c --model Qwen/Qwen3-8B
    """
    from edgellm.paths import default_paths
    from edgellm.sessions.client import swap_session
    from edgellm.sessions.registry import Registry

    registry = Registry.of(default_paths())
    with BringUpView(errors, quiet=quiet) as view:
        swap_session(registry, name, model, lambda line: view.note(line.who, line.phase, line.detail))
        elapsed_s = view.elapsed_s
    if not quiet:
        say(f"[green]swapped[/] in {elapsed_s:.1f} s: {escape(name)} answers with {escape(model)}")


@app.command("recover")
def recover(
    name: Annotated[str, typer.Argument(help="The session's name.")],
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Of the endpoint. Default: the one that it had."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but the session's name.")
    ] = False,
) -> None:
    """Bring back a session that crashed: same name, port, API key and options, on a new cluster.

    `edgellm session list` shows what crashed, after a reboot as well. Requests that were running are not asked again: `session
    show` says which they were. A client that asks one again with the same x-request-id is told by x-edgellm-unfinished.

    Examples:

      edgellm session recover amber-1f3c
    """
    from edgellm.paths import default_paths
    from edgellm.sessions.client import session_state
    from edgellm.sessions.recover import recover_session
    from edgellm.sessions.registry import Registry
    from edgellm.sessions.story import lost_requests

    registry = Registry.of(default_paths())
    with BringUpView(errors, quiet=quiet) as view:
        story = recover_session(
            registry, name, lambda line: view.note(line.who, line.phase, line.detail), port=port
        )
        elapsed_s = view.elapsed_s
    if not quiet:
        say(f"[green]ready[/] again in {elapsed_s:.1f} s; {lost_requests(story)}")
        described = session_state(registry, name).description
        if described is not None:
            say(f"its endpoint: {described.endpoint}")
    print(name)


@app.command("close")
def close(name: Annotated[str, typer.Argument(help="The session's name.")]) -> None:
    """Close a session, or forget one that crashed; returns when everything of it is gone."""
    from edgellm.paths import default_paths
    from edgellm.sessions.client import close_session
    from edgellm.sessions.registry import Registry

    close_session(Registry.of(default_paths()), name)
    say(f"closed {escape(name)}")


def report(state: SessionState) -> dict[str, object]:
    """A session for people and for JSON."""
    description, record = state.description, state.record
    if state.has_crashed:
        return report_of_crashed(state.name, state.story)
    if description is None:
        return {
            "name": state.name,
            "model": record.model if record else "",
            "state": f"failed: {record.failure}" if record and record.failure else "starting",
            "recoveries": 0,
            "spares": [],
            "running_requests": 0,
            "closes_in_s": None,
            "cost_s": None,
            "max_cost_s": None,
            "endpoint": "",
            "route": "",
            "unfinished": [],
        }
    expires = description.idle_expires_unix_ms / 1000
    return {
        "name": description.name,
        "model": description.model,
        "state": _state(description),
        "recoveries": description.recoveries,
        "spares": list(description.spares),
        "running_requests": description.running_requests,
        "closes_in_s": max(0.0, expires - time.time()) if expires else None,
        "cost_s": description.cost_s,
        "max_cost_s": description.max_cost_s or None,
        "endpoint": description.endpoint,
        "route": " → ".join(
            f"{stage.name}{' (relayed)' if stage.relay else ''} layers {stage.first_layer}-{stage.end_layer - 1}"
            for stage in description.stages
        ),
        "unfinished": [
            {
                "path": lost.path,
                "request_id": lost.request_id,
                "model": lost.model,
                "begun_at": lost.begun_unix_ms / 1000,
                "lost_at": lost.lost_unix_ms / 1000,
            }
            for lost in description.unfinished
        ],
    }


def _state(description: Description) -> str:
    if description.swapping_to:
        return f"swapping to {description.swapping_to}: {description.detail}"
    return f"recovering: {description.recovering}" if description.recovering else description.state
