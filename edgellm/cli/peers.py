"""`edgellm peers`: who lends what now."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgellm.cli import _options as options
from edgellm.cli import _trust
from edgellm.cli._look import look, tell_refused
from edgellm.cli._output import say, tables
from edgellm.errors import UsageError
from edgellm.types.quantity import format_bytes, format_duration

if TYPE_CHECKING:
    from edgellm.discovery.collect import Sighting
    from edgellm.types.advert import HostAdvert


def peers(
    swarm: options.Swarm = None,
    bootstrap: options.Bootstrap = None,
    mdns: options.Mdns = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="What you have seen of hosts instead, and whom you avoid for it.")
    ] = False,
    forgive: Annotated[
        str | None,
        typer.Option("--forgive", metavar="PEER", help="Forget what speaks against a host that is avoided."),
    ] = None,
    lent: Annotated[
        bool,
        typer.Option("--lent", help="What this machine itself has lent instead, to whom and for how long."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show who lends what now.

    Examples:

      edgellm peers

      edgellm peers --json | jq '.[] | select(.free_leases > 0).name'

      edgellm peers --trust
    """
    if trust + lent + (forgive is not None) > 1:
        raise UsageError("--trust, --forgive and --lent exclude each other", remedy="say one of them")
    if forgive is not None:
        _trust.forgive(forgive)
        return
    if trust or lent:
        (_trust.show_trust if trust else _trust.show_lent)(as_json=as_json)
        return
    found = look(bootstrap, mdns=mdns, swarm=swarm)
    if as_json:
        print(json.dumps([report(sighting) for sighting in found.sightings], ensure_ascii=False))
        return
    if not found.sightings:
        say("nobody lends anything now")
    else:
        tables.print(table(found.sightings))
    tell_refused(found)


def table(sightings: tuple[Sighting, ...]) -> Table:
    shown = Table(box=None, header_style="bold")
    for column in ("NAME", "PEER", "DEVICES", "FREE", "SPEED", "LEASES FREE", "PING", "MODELS"):
        shown.add_column(column, no_wrap=column in ("NAME", "PEER", "FREE"))
    for sighting in sightings:
        advert = sighting.advert
        kinds = sorted({device.name for device in advert.devices})
        bandwidth = sum(device.bandwidth_bytes_s for device in advert.devices)
        shown.add_row(
            escape(advert.name),
            f"…{advert.peer[-8:]}",
            f"{len(advert.devices)} × {escape(', '.join(kinds))}",
            format_bytes(advert.free_memory_bytes),
            f"{bandwidth / 1e9:.0f} GB/s",
            _leases(advert),
            f"{sighting.round_trip_s * 1000:.0f} ms{' relayed' if sighting.relay else ''}",
            escape(", ".join(offer.name for offer in advert.models)),
        )
    return shown


def _leases(advert: HostAdvert) -> str:
    if advert.draining:
        return "draining"
    ends = "" if advert.lends_until is None else f", for {format_duration(advert.lends_until - time.time())}"
    return f"{advert.free_leases}{ends}"


def report(sighting: Sighting) -> dict[str, object]:
    advert = sighting.advert
    return {
        "name": advert.name,
        "peer": advert.peer,
        "addresses": advert.addresses,
        "engine": {
            "backend": advert.engine.backend,
            "device_kind": advert.engine.device_kind,
            "versions": dict(advert.engine.versions),
        },
        "devices": [
            {
                "id": device.id,
                "kind": device.kind,
                "name": device.name,
                "free_memory_bytes": device.memory_bytes,
                "bandwidth_bytes_s": device.bandwidth_bytes_s,
                "flops": device.flops,
                "free": device.id in advert.free_devices,
            }
            for device in advert.devices
        ],
        "free_memory_bytes": advert.free_memory_bytes,
        "free_leases": advert.free_leases,
        "draining": advert.draining,
        "lends_until": advert.lends_until,
        "load": advert.load,
        "fabrics": advert.fabrics,
        "models": [
            {"name": offer.name, "digest": offer.digest, "max_context": offer.max_context}
            for offer in advert.models
        ],
        "round_trip_s": sighting.round_trip_s,
        "relay": sighting.relay,
        "expires_at": advert.expires_at,
    }
