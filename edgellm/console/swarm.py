"""What is seen of the swarm, as it is shown, and what is different from what was shown before. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import nsmallest

from edgellm.console import views
from edgellm.discovery.collect import Sighting
from edgellm.types.advert import HostAdvert

MAX_MODELS = 300
LATENCY_CHANGE = 0.3
LATENCY_CHANGE_S = 0.002
"""A round trip is another when it differs by more than both of these, the first of itself."""


def peer_of(sighting: Sighting, host: str | None = None) -> views.Peer:
    """A host as it is shown; `host` is its id where it was started from here."""
    advert = sighting.advert
    return views.Peer(
        peer=advert.peer,
        name=advert.name,
        addresses=list(advert.addresses),
        engine=views.Engine(
            backend=advert.engine.backend,
            device_kind=advert.engine.device_kind,
            versions=dict(advert.engine.versions),
        ),
        devices=_devices(advert),
        free_memory_bytes=advert.free_memory_bytes,
        free_leases=advert.free_leases,
        draining=advert.draining,
        fabrics=list(advert.fabrics),
        models=[
            views.Offer(
                name=offer.name,
                digest=offer.digest,
                layers=offer.layers,
                weights_bytes=offer.weights_bytes,
                max_context=offer.max_context,
            )
            for offer in advert.models
        ],
        round_trip_s=sighting.round_trip_s,
        expires_at=advert.expires_at,
        host=host,
    )


def _devices(advert: HostAdvert) -> list[views.Device]:
    return [
        views.Device(
            id=device.id,
            kind=device.kind,
            name=device.name,
            free_memory_bytes=device.memory_bytes,
            bandwidth_bytes_s=device.bandwidth_bytes_s,
            flops=device.flops,
            free=device.id in advert.free_devices,
        )
        for device in advert.devices
    ]


def models_of(peers: Iterable[views.Peer]) -> tuple[list[views.ModelEntry], int]:
    """One entry for each version of each model, by name; and of how many more there is none.

    Where there are more than `MAX_MODELS`, those that most hosts have are listed: hosts may say that they have what they like.
    """
    hosts: dict[tuple[str, str], list[tuple[views.Peer, views.Offer]]] = defaultdict(list)
    for peer in peers:
        for offer in peer.models:
            hosts[offer.name, offer.digest].append((peer, offer))
    listed = nsmallest(MAX_MODELS, hosts, key=lambda version: (-len(hosts[version]), version))
    entries = [
        views.ModelEntry(
            name=name,
            digest=digest,
            layers=group[0][1].layers,
            weights_bytes=group[0][1].weights_bytes,
            max_context=group[0][1].max_context,
            hosts=[peer.name for peer, _ in group],
            free_memory_bytes=sum(peer.free_memory_bytes for peer, _ in group),
        )
        for (name, digest), group in ((version, hosts[version]) for version in sorted(listed))
    ]
    return entries, len(hosts) - len(entries)


def refused_of(reasons: Iterable[str]) -> list[views.Refused]:
    """How many there are of each reason."""
    return [views.Refused(reason=reason, count=count) for reason, count in sorted(Counter(reasons).items())]


def differs(shown: views.Peer, now: views.Peer) -> bool:
    """Whether somebody who looks at `shown` should be told. Each advert expires later, and no two round trips are equal."""
    passing = {"expires_at": 0.0, "round_trip_s": 0.0}
    if shown.model_copy(update=passing) != now.model_copy(update=passing):
        return True
    change_s = abs(shown.round_trip_s - now.round_trip_s)
    return change_s > max(LATENCY_CHANGE_S, LATENCY_CHANGE * shown.round_trip_s)
