"""`edgellm kv`: what this machine keeps of KV caches, and what that was good for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from edgellm.cli import _options as options
from edgellm.cli._output import say
from edgellm.types.quantity import format_bytes

if TYPE_CHECKING:
    from edgellm.paths import Paths

app = typer.Typer(help="See what is kept of KV caches, and what it was good for.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class Report:
    """What `stat` tells. Figures are sums since the files in the cache directory were made."""

    held_records: int
    """Pieces that this host keeps, or kept until their blocks were evicted."""
    known_records: int
    """Pieces that this user's clusters left on hosts."""
    known_holders: int
    figures: dict[str, float]


@app.callback()
def _verbs() -> None:
    """Without it, Typer would take the only verb for the whole command."""


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
    from edgellm.kv.figures import COUNTERS, prometheus
    from edgellm.paths import default_paths

    report = read_report(default_paths())
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


def read_report(paths: Paths) -> Report:
    """From the files of this user's host and requesters, which may be running."""
    import trio

    from edgellm.kv.figures import COUNTERS
    from edgellm.kv.index import HELD, TRACKED, open_index

    async def read() -> Report:
        paths.kv.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open_index(paths.kv / HELD) as held, open_index(paths.kv / TRACKED) as tracked:
            own, known, figures = await held.stat(), await tracked.stat(), await held.figures()
        return Report(
            held_records=own.records,
            known_records=known.records,
            known_holders=known.holders,
            figures={name: figures.get(name, 0.0) for name in COUNTERS},
        )

    return trio.run(read)
