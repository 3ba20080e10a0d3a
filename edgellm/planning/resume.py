"""What becomes of a plan when hosts are lost: who takes their places. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from edgellm.types.plan import Candidate, PlanRequest, StagePlan


@dataclass(frozen=True, slots=True)
class Held:
    """A host of which the requester holds a lease already."""

    peer: str
    name: str
    devices: tuple[str, ...]
    memory_bytes: int
    """On each device."""


def refilled(stages: StagePlan, spares: Sequence[Held], *, gone: Collection[str]) -> StagePlan | None:
    """The same stages with spares in the places of hosts that are gone; None where the spares cannot take them all.

    Each place is taken by the smallest spare that is large enough, so that larger ones are left for larger places.
    """
    left = sorted(spares, key=lambda spare: (spare.memory_bytes, spare.peer))
    filled = list(stages.stages)
    places = [index for index, stage in enumerate(filled) if stage.peer in gone]
    for index in sorted(places, key=lambda index: filled[index].memory_bytes):
        fitting = next(
            (
                spare
                for spare in left
                if spare.memory_bytes >= filled[index].memory_bytes
                and len(spare.devices) == stages.tensor_parallel
            ),
            None,
        )
        if fitting is None:
            return None
        left.remove(fitting)
        filled[index] = replace(filled[index], peer=fitting.peer, name=fitting.name, devices=fitting.devices)
    return replace(stages, stages=tuple(filled))


def as_held(candidates: Sequence[Candidate], held: Sequence[Held]) -> tuple[Candidate, ...]:
    """The candidates, of whom those that lend already lend exactly that: their members need not be started anew."""
    by_peer = {lent.peer: lent for lent in held}

    def narrowed(candidate: Candidate) -> Candidate:
        lent = by_peer.get(candidate.peer)
        if lent is None:
            return candidate
        devices = tuple(
            replace(device, memory_bytes=lent.memory_bytes)
            for device in candidate.devices
            if device.id in lent.devices
        )
        return replace(candidate, devices=devices, load=0.0)

    return tuple(narrowed(candidate) for candidate in candidates)


def in_turn(candidates: Sequence[Candidate], avoided: Sequence[str]) -> tuple[tuple[Candidate, ...], ...]:
    """Whom to choose among: first without all peers that are avoided, then with one more of them each time, in their order."""
    there = [peer for peer in avoided if any(candidate.peer == peer for candidate in candidates)]
    return tuple(
        tuple(candidate for candidate in candidates if candidate.peer not in there[count:])
        for count in range(len(there) + 1)
    )


def still_asked(request: PlanRequest, candidates: Sequence[Candidate]) -> PlanRequest:
    """The request without those of its peers that are not there any more; as it is where none of them is left."""
    left = tuple(
        asked for asked in request.peers if any(_is_called(candidate, asked) for candidate in candidates)
    )
    return replace(request, peers=left) if left else request


def _is_called(candidate: Candidate, asked: str) -> bool:
    return candidate.name == asked or candidate.peer.startswith(asked)


def spare_for(
    stages: StagePlan, candidates: Sequence[Candidate], *, taken: Collection[str], asked: Sequence[str] = ()
) -> Held | None:
    """The host that could take any stage's place, and has the most memory to spare; None where there is none.

    `taken` are peers that take part already; only those `asked` for count, where any are named.
    """
    needed = max(stage.memory_bytes for stage in stages.stages)
    request = stages.request
    fitting: list[Held] = []
    for candidate in candidates:
        if (
            candidate.peer in taken
            or candidate.digest != request.digest
            or candidate.engine != stages.engine
            or request.fabric not in candidate.fabrics
            or candidate.load > request.max_load
            or (asked and not any(_is_called(candidate, name) for name in asked))
        ):
            continue
        large = sorted(
            (device for device in candidate.devices if device.memory_bytes >= needed),
            key=lambda device: (-device.memory_bytes, device.id),
        )[: stages.tensor_parallel]
        if len(large) == stages.tensor_parallel:
            ids = tuple(sorted(device.id for device in large))
            fitting.append(Held(candidate.peer, candidate.name, ids, needed))
    memory = {
        candidate.peer: sum(device.memory_bytes for device in candidate.devices) for candidate in candidates
    }
    return min(fitting, key=lambda spare: (-memory[spare.peer], spare.peer), default=None)
