"""Who offers a model now, or a clear reason why nobody does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edgellm.discovery.collect import Found, SequenceBook, Sighting, find_hosts
from edgellm.errors import DiscoveryError
from edgellm.p2p.network import Network, PeerAddress
from edgellm.types.advert import Device, HostAdvert, ModelOffer
from edgellm.types.plan import Candidate


@dataclass(frozen=True, slots=True)
class Offers:
    """Hosts of one model version, as the planner and the leases need them."""

    digest: str
    candidates: tuple[Candidate, ...]
    hosts: dict[str, PeerAddress]
    incomplete: bool = False
    """Whether hosts were listed that were not waited for."""


@dataclass(frozen=True, slots=True)
class Lent:
    """What a host lends to a cluster."""

    devices: tuple[str, ...]
    memory_bytes: int
    """Of each."""


async def discover(
    network: Network,
    model: str,
    *,
    book: SequenceBook,
    now: Callable[[], float],
    freed: Mapping[str, Lent] | None = None,
    patient: bool = False,
) -> tuple[Offers, ...]:
    """What the swarm offers of `model` (a name or a digest), one entry for each version, the most offered first.

    `freed` says by peer what is lent now and is to count as free. Hosts that take much longer than the others are waited for
    only where there are no others, and by who is `patient`.

    Raises DiscoveryError when nobody offers it, saying what is offered instead.
    """
    found = await find_hosts(network, model, book=book, now=now, patient=patient)
    willing = _willing(found, model)
    if not willing and found.unanswered:
        found = await find_hosts(network, model, book=book, now=now)
        willing = _willing(found, model)
    if not willing:
        raise await _nobody(network, model, found, book, now)
    versions = Counter(offer.digest for _, offer in willing)
    ranked = sorted(versions, key=lambda digest: (-versions[digest], digest))
    return tuple(
        Offers(
            digest,
            tuple(
                _candidate(sighting, digest, (freed or {}).get(sighting.advert.peer), now())
                for sighting, offer in willing
                if offer.digest == digest
            ),
            {
                sighting.advert.peer: PeerAddress(sighting.advert.peer, sighting.advert.addresses)
                for sighting, offer in willing
                if offer.digest == digest
            },
            found.unanswered > 0,
        )
        for digest in ranked
    )


def _willing(found: Found, model: str) -> list[tuple[Sighting, ModelOffer]]:
    return [
        (sighting, offer)
        for sighting in found.sightings
        if (offer := sighting.advert.offer(model)) is not None and not sighting.advert.draining
    ]


def _candidate(sighting: Sighting, digest: str, freed: Lent | None, now: float) -> Candidate:
    advert = sighting.advert
    devices = free_devices(advert)
    if freed is not None:
        lent = (device for device in advert.devices if device.id in freed.devices and device not in devices)
        devices += tuple(
            replace(device, memory_bytes=max(device.memory_bytes, freed.memory_bytes)) for device in lent
        )
    return Candidate(
        peer=advert.peer,
        name=advert.name,
        digest=digest,
        engine=advert.engine,
        devices=devices,
        fabrics=advert.fabrics,
        round_trip_s=sighting.round_trip_s,
        load=advert.load,
        lends_for_s=math.inf if advert.lends_until is None else max(0.0, advert.lends_until - now),
    )


def free_devices(advert: HostAdvert) -> tuple[Device, ...]:
    """The devices of an advert that are free, each with the memory that is free on it."""
    if not advert.free_leases:
        return ()
    return tuple(device for device in advert.devices if device.id in advert.free_devices)


async def _nobody(
    network: Network, model: str, found: Found, book: SequenceBook, now: Callable[[], float]
) -> DiscoveryError:
    others = await find_hosts(network, None, book=book, now=now)
    names = sorted({offer.name for sighting in others.sightings for offer in sighting.advert.models})
    refused = ", ".join(f"{count} {why}" for why, count in sorted(found.refused.items()))
    message = f"nobody hosts {model!r} now"
    if refused:
        message += f" ({found.listed} listed: {refused})"
    if names:
        return DiscoveryError(
            message, remedy=f"the swarm offers: {', '.join(names[:8])} (see `edgellm models`)"
        )
    return DiscoveryError(message, remedy=f"host it yourself: edgellm host --model {model}")
