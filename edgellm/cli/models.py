"""`edgellm models`: what can be asked for now."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from edgellm.cli import _options as options
from edgellm.cli._look import look, tell_refused
from edgellm.cli._output import say, tables
from edgellm.types.quantity import format_bytes

if TYPE_CHECKING:
    from edgellm.discovery.collect import Sighting


def models(
    bootstrap: options.Bootstrap = None, mdns: options.Mdns = False, as_json: options.Json = False
) -> None:
    """Show which models can be asked for now. The same name with another digest is another version.

    Examples:

      edgellm models

      edgellm models --json | jq -r '.[].name'
    """
    found = look(bootstrap, mdns=mdns)
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


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of one model, and who hosts it."""

    name: str
    digest: str
    layers: int
    weights_bytes: int
    max_context: int
    hosts: tuple[str, ...]
    free_memory_bytes: int


def entries_of(sightings: tuple[Sighting, ...]) -> list[Entry]:
    """One entry for each version of each model, by name."""
    hosts: dict[tuple[str, str], list[Sighting]] = defaultdict(list)
    for sighting in sightings:
        for offer in sighting.advert.models:
            hosts[offer.name, offer.digest].append(sighting)
    entries = []
    for (name, digest), group in sorted(hosts.items()):
        offer = next(entry for entry in group[0].advert.models if entry.digest == digest)
        entries.append(
            Entry(
                name=name,
                digest=digest,
                layers=offer.layers,
                weights_bytes=offer.weights_bytes,
                max_context=offer.max_context,
                hosts=tuple(sighting.advert.name for sighting in group),
                free_memory_bytes=sum(sighting.advert.free_memory_bytes for sighting in group),
            )
        )
    return entries
