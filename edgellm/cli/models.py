"""`edgellm models`: what can be asked for now."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from edgellm.cli import _options as options
from edgellm.cli._look import look, tell_refused
from edgellm.cli._output import say, tables
from edgellm.discovery.versions import entries_of
from edgellm.types.quantity import format_bytes


def models(
    swarm: options.Swarm = None,
    bootstrap: options.Bootstrap = None,
    mdns: options.Mdns = False,
    as_json: options.Json = False,
) -> None:
    """Show which models can be asked for now. The same name with another digest is another version.

    Examples:

      edgellm models

      edgellm models --json | jq -r '.[].name'
    """
    found = look(bootstrap, mdns=mdns, swarm=swarm)
    offered = entries_of(found.sightings)
    if as_json:
        print(json.dumps([asdict(entry) for entry in offered], ensure_ascii=False))
        return
    if not offered:
        say("no model is offered now")
    else:
        shown = Table(box=None, header_style="bold")
        for column in ("MODEL", "DIGEST", "LAYERS", "WEIGHTS", "CONTEXT", "HOSTS", "FREE MEMORY"):
            shown.add_column(column)
        for entry in offered:
            shown.add_row(
                escape(entry.name),
                entry.digest[:12],
                str(entry.layers),
                format_bytes(entry.weights_bytes),
                str(entry.max_context),
                escape(", ".join(entry.hosts)),
                format_bytes(entry.free_memory_bytes),
            )
        tables.print(shown)
    tell_refused(found)
