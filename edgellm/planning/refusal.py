"""Why there is no plan: each a PlanError with the numbers and the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgellm.errors import PlanError
from edgellm.planning.eligible import names, who
from edgellm.planning.fit import Footprint
from edgellm.planning.layers import lacking_bytes, largest_seats, pack_layers
from edgellm.planning.seats import Seat
from edgellm.planning.shapes import shapes, splits_heads
from edgellm.types.advert import Engine
from edgellm.types.plan import Candidate, PlanRequest, StagePlan
from edgellm.types.quantity import format_bytes


def check_request(request: PlanRequest) -> None:
    """Raises PlanError when no host whatever could serve the request."""
    shape, model = request.shape, request.model
    if request.context > shape.max_context:
        raise PlanError(
            f"{model} has a context of {shape.max_context:,} tokens; {request.context:,} are asked for",
            remedy="shorten the prompt or lower --max-tokens",
        )
    if request.context < 1 or request.sequences < 1:
        raise PlanError(
            f"a plan needs room for at least one token and one sequence, not {request.context} and {request.sequences}"
        )
    degree, stages = request.tensor_parallel, request.pipeline_parallel
    if degree is not None and not splits_heads(shape, degree):
        possible = ", ".join(str(d) for d in range(1, shape.attention_heads + 1) if splits_heads(shape, d))
        raise PlanError(
            f"{model} has {shape.attention_heads} attention heads and {shape.kv_heads} KV heads, which --tp {degree} "
            "does not divide",
            remedy=f"possible values of --tp: {possible}",
        )
    if stages is not None and not 1 <= stages <= shape.layers:
        raise PlanError(
            f"{model} has {shape.layers} layers, which cannot make {stages} pipeline stages",
            remedy=f"possible values of --pp: 1 to {shape.layers}",
        )


def check_counts(request: PlanRequest, groups: Sequence[tuple[Engine, Sequence[Candidate]]]) -> None:
    """Raises PlanError when --tp or --pp asks for more devices or hosts than there are in any group of one engine."""
    degree, stages = request.tensor_parallel or 1, request.pipeline_parallel or 1
    hosts = [host for _, group in groups for host in group]
    richest = min(hosts, key=lambda host: (-len(host.devices), host.peer))
    if len(richest.devices) < degree:
        raise PlanError(
            f"--tp {degree} needs a host with {degree} free devices; the most is {len(richest.devices)}, {who(richest)}",
            remedy=f"lower --tp to {len(richest.devices)} or less, or spread the model over hosts with --pp",
        )
    able = [host for host in hosts if len(host.devices) >= degree]
    if len(able) < stages:
        having = f" with {degree} free devices each" if degree > 1 else ""
        raise PlanError(
            f"--pp {stages} needs {stages} hosts{having}; {len(able)} offer {request.model}: {names(able)}",
            remedy=f"lower --pp to {len(able)} or less, or add hosts",
        )
    if len(groups) > 1 and max(sum(len(h.devices) >= degree for h in group) for _, group in groups) < stages:
        raise _engines_differ(groups, f"--pp {stages} needs {stages} hosts of one engine version")


def no_fit(request: PlanRequest, groups: Sequence[tuple[Engine, Sequence[Candidate]]]) -> PlanError:
    """The error for candidates of which no group of one engine can hold the model."""
    everyone = [host for _, group in groups for host in group]
    if len(groups) > 1:
        engine = groups[0][0]
        if any(shortage.missing_bytes == 0 for shortage in _shortages(request, engine, everyone)):
            return _engines_differ(
                groups, f"{request.model} fits on all hosts together, but not on those of one engine"
            )
    shortages = [shortage for engine, group in groups for shortage in _shortages(request, engine, group)]
    least = min(shortages, key=lambda s: (s.missing_bytes, len(s.seats), s.need.tensor_parallel))
    return _too_big(request, least, len(everyone))


def too_slow(plan: StagePlan) -> PlanError:
    """The error for a request whose fastest plan is this one, and slower than it allows."""
    request = plan.request
    hosts = " + ".join(stage.name or stage.peer[:16] for stage in plan.stages)
    return PlanError(
        f"{request.model} would be too slow: the fastest plan, on {hosts}, is expected to decode "
        f"{plan.prediction.decode_tok_s:.1f} tok/s; at least {request.min_tok_s:g} is asked for",
        remedy="lower --min-tok-s, add faster or nearer hosts, or take a smaller model",
    )


@dataclass(frozen=True, slots=True)
class _Shortage:
    """What hosts that are filled up lack to hold a model."""

    need: Footprint
    seats: tuple[Seat, ...]

    @property
    def missing_bytes(self) -> int:
        return lacking_bytes(self.need, self.seats)


def _shortages(request: PlanRequest, engine: Engine, hosts: Sequence[Candidate]) -> Iterator[_Shortage]:
    for need, seats, stages in shapes(request, engine, hosts):
        yield _Shortage(need, largest_seats(need, seats, stages))


def _too_big(request: PlanRequest, shortage: _Shortage, offering: int) -> PlanError:
    need, seats = shortage.need, shortage.seats
    ranks = need.tensor_parallel
    ranges = pack_layers(need, seats)
    weights_bytes = sum(need.weights_bytes(first, end) for first, end in ranges)
    kv_bytes = ranks * need.kv_bytes(request.shape.layers)
    needed_bytes = ranks * sum(need.stage_bytes(first, end) for first, end in ranges)
    lent_bytes = ranks * sum(seat.memory_bytes for seat in seats)
    missing_bytes = shortage.missing_bytes
    processes = "1 engine process" if len(seats) * ranks == 1 else f"{len(seats) * ranks} engine processes"
    remedy = "add hosts, lend more memory (edgellm host --memory), ask for a shorter answer, or take a smaller model"
    if request.shares_kv:
        processes += " and sharing the KV cache"
        remedy += "; --no-kv-share takes less"
    hosts = "host" if len(seats) == 1 else f"{len(seats)} hosts"
    which = f"the {hosts} that can hold most of it" if len(seats) < offering else f"the {hosts} offering it"
    return PlanError(
        f"{request.model} is too big: it needs {format_bytes(needed_bytes)} (weights {format_bytes(weights_bytes)}, "
        f"KV cache for {request.context:,} tokens {format_bytes(kv_bytes)}, the rest for {processes}); "
        f"{which} can hold {format_bytes(needed_bytes - missing_bytes)} of that in "
        f"{format_bytes(lent_bytes)} of memory; {format_bytes(missing_bytes)} is missing",
        remedy=remedy,
    )


def _engines_differ(groups: Sequence[tuple[Engine, Sequence[Candidate]]], message: str) -> PlanError:
    listed = "; ".join(f"{engine}: {names(group)}" for engine, group in groups)
    return PlanError(f"{message}: {listed}", remedy="install the same engine versions on all of these hosts")
