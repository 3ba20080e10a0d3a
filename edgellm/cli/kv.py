"""`edgellm kv`: what this machine keeps of KV caches, and what that was good for."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table

from edgellm.cli import _options as options
from edgellm.cli._output import say, tables
from edgellm.types.quantity import format_bytes

if TYPE_CHECKING:
    from edgellm.blocks.cid import Cid
    from edgellm.blocks.disk import DiskStore

T = TypeVar("T")

app = typer.Typer(help="See what is kept of KV caches, and what it was good for.", no_args_is_help=True)


@app.command("stat")
def stat(
    as_json: options.Json = False,
    as_prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print Prometheus' text format, as for a textfile collector.")
    ] = False,
) -> None:
    """Show how much was fetched instead of computed, and what went wrong.

    Examples:

      edgellm kv stat

      edgellm kv stat --prometheus > /var/lib/node_exporter/edgellm.prom
    """
    import trio

    from edgellm.kv.figures import COUNTERS, prometheus
    from edgellm.kv.report import read_report
    from edgellm.paths import default_paths

    report = trio.run(read_report, default_paths())
    if as_prometheus:
        print(prometheus(report.figures), end="")
        return
    if as_json:
        print(json.dumps(asdict(report)))
        return
    say(f"records of pieces held here: {report.held_records}")
    say(f"records of pieces on hosts:  {report.known_records}, of {report.known_holders} hosts")
    for name, meaning in COUNTERS.items():
        count = report.figures.get(name, 0.0)
        text = format_bytes(round(count)) if name.startswith("bytes") else f"{count:,.10g}"
        say(f"  {text:>12}  [dim]{meaning}[/]")


Cids = Annotated[list[str], typer.Argument(metavar="CID...", help="Blocks, as `edgellm kv ls` shows them.")]


@app.command("ls")
def ls(as_json: options.Json = False) -> None:
    """Show the blocks that this machine keeps, the least recently used first: the first to go.

    Examples:

      edgellm kv ls

      edgellm kv ls --json | jq -r '.[] | select(.pinned) | .cid'
    """
    entries = _with_store(lambda store: store.entries())
    if as_json:
        shown = [
            {
                "cid": str(entry.cid),
                "size_bytes": entry.size_bytes,
                "used_s": entry.used_s,
                "pinned": entry.pinned,
            }
            for entry in entries
        ]
        print(json.dumps(shown))
        return
    if not entries:
        say("no block is kept here")
        return
    table = Table(box=None, header_style="bold")
    table.add_column("CID", no_wrap=True)
    for column in ("SIZE", "LAST USED", "PINNED"):
        table.add_column(column)
    for entry in entries:
        used = datetime.fromtimestamp(entry.used_s).isoformat(" ", "seconds")
        table.add_row(str(entry.cid), format_bytes(entry.size_bytes), used, "yes" if entry.pinned else "")
    tables.print(table)


@app.command("gc")
def gc(as_json: options.Json = False) -> None:
    """Remove all blocks that are not pinned. Whoever needs one later computes it again.

    Example:

      edgellm kv gc
    """
    freed_bytes = _with_store(lambda store: store.gc())
    if as_json:
        print(json.dumps({"freed_bytes": freed_bytes}))
    else:
        say(f"freed {format_bytes(freed_bytes)}")


@app.command("pin")
def pin(cids: Cids) -> None:
    """Keep blocks, whatever else needs room. Nothing is pinned when one of them is not here.

    Example:

      edgellm kv pin bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e
    """
    from edgellm.errors import BlockMissing

    wanted = _parsed(cids)

    async def pin_all(store: DiskStore) -> None:
        for cid in wanted:
            if not await store.has(cid):
                raise BlockMissing(f"block {cid} is not here", remedy="see `edgellm kv ls`")
        for cid in wanted:
            await store.pin(cid)

    _with_store(pin_all)


@app.command("unpin")
def unpin(cids: Cids) -> None:
    """Let blocks go when others need the room. Nothing happens to those that are not pinned.

    Example:

      edgellm kv unpin bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e
    """
    wanted = _parsed(cids)

    async def unpin_all(store: DiskStore) -> None:
        for cid in wanted:
            await store.unpin(cid)

    _with_store(unpin_all)


def _parsed(texts: list[str]) -> list[Cid]:
    from edgellm.blocks.cid import Cid

    return [Cid.parse(text) for text in texts]


def _with_store(work: Callable[[DiskStore], Awaitable[T]]) -> T:
    """The result of `work` with this user's store, which a host may have open."""
    import trio

    from edgellm.blocks.disk import open_disk_store
    from edgellm.paths import default_paths

    async def run() -> T:
        async with open_disk_store(default_paths().blocks, None) as store:
            return await work(store)

    return trio.run(run)
