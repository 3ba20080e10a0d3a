"""Which candidates may serve a request at all, and who they are to a user."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from edgellm.errors import PlanError
from edgellm.types.advert import Engine
from edgellm.types.plan import Candidate, PlanRequest

_NAMED = 6
"""Hosts that a message names before it counts the rest."""


def eligible(request: PlanRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that are among the asked peers, stand well enough, hold the asked files, offer the fabric, lend for long
    enough and are not too busy, by peer id.

    Raises PlanError when none is left, naming the first thing that none of them satisfies.
    """
    if not candidates:
        raise PlanError(
            f"no host offers {request.model}",
            remedy=f"start one with: edgellm host --model {request.model}; edgellm models lists what is on offer",
        )
    chosen = _among(request.peers, sorted(candidates, key=lambda c: c.peer))
    usable = [candidate for candidate in chosen if not candidate.standing.excluded]
    if not usable:
        reasons = "; ".join(f"{who(c)}: {c.standing.excluded}" for c in chosen[:_NAMED])
        raise PlanError(
            f"every host of {request.model} is left out for what it did before ({reasons}{_rest(chosen)})",
            remedy="add a host, or take one back: edgellm peers --forgive PEER",
        )
    same_files = [candidate for candidate in usable if candidate.digest == request.digest]
    if not same_files:
        others = ", ".join(f"{who(c)}: {short(c.digest)}" for c in usable[:_NAMED])
        raise PlanError(
            f"no host holds {request.model} with digest {short(request.digest)} ({others}{_rest(usable)})",
            remedy="hosts and requester must use the same files: download the same revision again, on one side or the other",
        )
    on_fabric = [candidate for candidate in same_files if request.fabric in candidate.fabrics]
    if not on_fabric:
        offered = (
            ", ".join(sorted({fabric for candidate in same_files for fabric in candidate.fabrics})) or "none"
        )
        raise PlanError(
            f"no host of {request.model} offers the {request.fabric} network; offered: {offered}",
            remedy="choose an offered one with --network",
        )
    with_devices = [candidate for candidate in on_fabric if candidate.devices]
    if not with_devices:
        raise PlanError(
            f"every device of the hosts of {request.model} is lent ({names(on_fabric)})",
            remedy="try again later, or add a host",
        )
    lasting = [candidate for candidate in with_devices if candidate.lends_for_s >= request.lasts_s]
    if not lasting:
        left = ", ".join(f"{who(c)}: in {c.lends_for_s:.0f} s" for c in with_devices[:_NAMED])
        raise PlanError(
            f"every host of {request.model} stops lending before {request.lasts_s:.0f} s are over, which this may take "
            f"({left}{_rest(with_devices)})",
            remedy="ask for a shorter answer with --max-tokens, or add a host",
        )
    idle_enough = [candidate for candidate in lasting if candidate.load <= request.max_load]
    if not idle_enough:
        loads = ", ".join(f"{who(c)}: {c.load:.0%}" for c in lasting[:_NAMED])
        raise PlanError(
            f"every host of {request.model} is busier than --max-load {request.max_load:g} allows "
            f"({loads}{_rest(lasting)})",
            remedy="allow more, try again later, or add a host",
        )
    return idle_enough


def by_engine(candidates: Sequence[Candidate]) -> list[tuple[Engine, list[Candidate]]]:
    """The candidates in groups of equal engines: only those of one group may form a cluster."""

    def key(candidate: Candidate) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        return (candidate.engine.backend, candidate.engine.device_kind, candidate.engine.versions)

    groups = (list(group) for _, group in groupby(sorted(candidates, key=key), key=key))
    return [(group[0].engine, group) for group in groups]


def short(digest: str) -> str:
    """Enough of a digest to tell two apart."""
    return digest[:12]


def who(candidate: Candidate) -> str:
    """A host for a message: its name and as much of its peer id as --peers needs."""
    peer = candidate.peer if len(candidate.peer) <= 16 else f"{candidate.peer[:16]}…"
    return f"{candidate.name} ({peer})" if candidate.name else peer


def names(candidates: Sequence[Candidate]) -> str:
    """All of them, or the first few and a count."""
    return ", ".join(who(candidate) for candidate in candidates[:_NAMED]) + _rest(candidates)


def _rest(candidates: Sequence[Candidate]) -> str:
    return f" and {len(candidates) - _NAMED} more" if len(candidates) > _NAMED else ""


def asked_peers(asked: Iterable[str], candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The peer ids of the hosts that are asked for by name or id. Raises PlanError where one is none, or several."""
    return tuple(_the_one(name, candidates).peer for name in asked)


def _among(asked: Iterable[str], candidates: list[Candidate]) -> list[Candidate]:
    peers = asked_peers(asked, candidates)
    return [candidate for candidate in candidates if not peers or candidate.peer in peers]


def _the_one(asked: str, candidates: Sequence[Candidate]) -> Candidate:
    exact = [candidate for candidate in candidates if candidate.peer == asked]
    named = exact or [candidate for candidate in candidates if candidate.name == asked]
    matches = named or [candidate for candidate in candidates if asked and candidate.peer.startswith(asked)]
    if not matches:
        raise PlanError(
            f"no host of the model is called {asked!r} (there are {names(candidates)})",
            remedy="give --peers names or peer ids as edgellm peers shows them",
        )
    if len(matches) > 1:
        raise PlanError(
            f"--peers {asked!r} means {len(matches)} hosts: {names(matches)}",
            remedy="give more of the peer id",
        )
    return matches[0]
