"""Which versions of which models hosts offer. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.discovery.collect import Sighting


@dataclass(frozen=True, slots=True)
class Model:
    """One version of one model, and who hosts it."""

    name: str
    digest: str
    layers: int
    weights_bytes: int
    max_context: int
    hosts: tuple[str, ...]
    free_memory_bytes: int


def entries_of(sightings: tuple[Sighting, ...]) -> list[Model]:
    """One entry for each version of each model, by name."""
    hosts: dict[tuple[str, str], list[Sighting]] = defaultdict(list)
    for sighting in sightings:
        for offer in sighting.advert.models:
            hosts[offer.name, offer.digest].append(sighting)
    entries = []
    for (name, digest), group in sorted(hosts.items()):
        offer = next(entry for entry in group[0].advert.models if entry.digest == digest)
        entries.append(
            Model(
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
