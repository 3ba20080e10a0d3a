"""From a request and the hosts that could serve it to the best plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from edgellm.errors import PlanError
from edgellm.planning.eligible import by_engine, eligible
from edgellm.planning.fit import Footprint
from edgellm.planning.layers import lacking_bytes, largest_seats, pipeline_order, split_layers
from edgellm.planning.predict import decode_read_bytes, fixed_step_s, kv_read_bytes, predict, prefill_flop
from edgellm.planning.refusal import check_counts, check_request, no_fit, too_slow
from edgellm.planning.seats import Seat
from edgellm.planning.shapes import shapes
from edgellm.types.advert import Engine
from edgellm.types.plan import Candidate, PlanRequest, Prediction, Stage, StagePlan, Workload


@dataclass(frozen=True, slots=True)
class _Arrangement:
    """Hosts in pipeline order in which the layers are known to fit."""

    need: Footprint
    seats: tuple[Seat, ...]

    def least_s(self, workload: Workload) -> float:
        """No split of the layers answers faster: as if the fastest seat held everything, the fastest of each kind of work."""
        shape = self.need.shape
        read_bytes = decode_read_bytes(self.need, 0, shape.layers)
        bandwidth = max(seat.bandwidth_bytes_s for seat in self.seats)
        token_s = read_bytes / bandwidth + sum(fixed_step_s(seat) for seat in self.seats)
        flops = max(seat.flops for seat in self.seats)
        prefill_tok_s = flops / prefill_flop(self.need, 0, shape.layers)
        return workload.seconds(Prediction(1 / token_s, prefill_tok_s))


def make_plan(request: PlanRequest, candidates: Sequence[Candidate]) -> StagePlan:
    """The plan that does the request's workload soonest, by prediction: without a known prompt the one with the most decode
    tok/s. Of equals the one with fewer hosts, then with lower peer ids. Hosts in doubt are in it only where there is no plan
    without them, or where the request names its hosts.

    All stages share one engine and one tensor-parallel degree; a host serves one stage, with exactly that many of its
    devices. What the request fixes (`tensor_parallel`, `pipeline_parallel`, `peers`) is kept. The order of
    `candidates` does not matter. Where that plan decodes more slowly than the request allows, it is the one with the most
    decode tok/s. Raises PlanError, which says what is missing, when there is no plan.
    """
    undoubted = [host for host in candidates if not host.standing.doubt]
    if not request.peers and 0 < len(undoubted) < len(candidates):
        try:
            return make_plan(request, undoubted)
        except PlanError:
            pass  # they are the last choice
    soonest = _soonest(request, candidates)
    if soonest.prediction.decode_tok_s >= request.min_tok_s:
        return soonest
    fastest = _soonest(replace(request, workload=Workload()), candidates)
    if fastest.prediction.decode_tok_s < request.min_tok_s:
        raise too_slow(fastest)
    return replace(fastest, request=request)


def _soonest(request: PlanRequest, candidates: Sequence[Candidate]) -> StagePlan:
    check_request(request)
    groups = by_engine(eligible(request, candidates))
    check_counts(request, groups)
    plans = [plan for engine, group in groups if (plan := _best(request, engine, group)) is not None]
    if not plans:
        raise no_fit(request, groups)
    return min(plans, key=_preference)


def _best(request: PlanRequest, engine: Engine, hosts: Sequence[Candidate]) -> StagePlan | None:
    best: StagePlan | None = None
    workload = request.workload
    for arrangement in sorted(_arrangements(request, engine, hosts), key=lambda a: a.least_s(workload)):
        if best is not None and arrangement.least_s(workload) > workload.seconds(best.prediction):
            break
        plan = _plan(request, engine, arrangement)
        if plan is not None and (best is None or _preference(plan) < _preference(best)):
            best = plan
    return best


def _preference(plan: StagePlan) -> tuple[float, int, int, tuple[str, ...]]:
    peers = tuple(stage.peer for stage in plan.stages)
    return (plan.request.workload.seconds(plan.prediction), len(peers), plan.tensor_parallel, peers)


def _arrangements(request: PlanRequest, engine: Engine, hosts: Sequence[Candidate]) -> Iterator[_Arrangement]:
    for need, seats, stages in shapes(request, engine, hosts):
        ordered = _choose(need, seats, stages, request.workload)
        if ordered is not None:
            yield _Arrangement(need, ordered)


def _choose(
    need: Footprint, seats: Sequence[Seat], stages: int, workload: Workload
) -> tuple[Seat, ...] | None:
    """The fastest `stages` seats that hold the model, in pipeline order; None when not even the largest ones do.

    Starts with the fastest and, as long as they are too small, exchanges the smallest for the fastest that is larger.
    Memory grows at every step, so this ends, with the largest seats at the latest.
    """
    read_bytes = (decode_read_bytes(need, 0, need.shape.layers) + kv_read_bytes(need)) / stages
    flop = prefill_flop(need, 0, need.shape.layers) / stages

    def share_s(seat: Seat) -> float:
        token_s = read_bytes / seat.bandwidth_bytes_s + seat.round_trip_s
        return workload.seconds(Prediction(1 / token_s, seat.flops / flop))

    fastest_first = sorted(seats, key=lambda seat: (share_s(seat), seat.peer))
    largest = largest_seats(need, seats, stages)
    if lacking_bytes(need, largest):
        return None
    chosen, unused = fastest_first[:stages], fastest_first[stages:]
    while lacking_bytes(need, ordered := pipeline_order(need, chosen)):
        smallest = min(chosen, key=lambda s: s.memory_bytes)
        larger = next((seat for seat in unused if seat.memory_bytes > smallest.memory_bytes), None)
        if larger is None:
            return largest
        chosen.remove(smallest)
        unused.remove(larger)
        chosen.append(larger)
    return ordered


def _plan(request: PlanRequest, engine: Engine, arrangement: _Arrangement) -> StagePlan | None:
    need, seats = arrangement.need, arrangement.seats
    ranges = split_layers(need, seats)
    if ranges is None:
        return None
    stages = tuple(
        Stage(seat.peer, seat.name, first, end, need.stage_bytes(first, end), seat.devices)
        for seat, (first, end) in zip(seats, ranges, strict=True)
    )
    return StagePlan(
        request=request,
        engine=engine,
        tensor_parallel=need.tensor_parallel,
        stages=stages,
        kv_cache_bytes=need.kv_bytes(max(end - first for first, end in ranges)),
        prediction=predict(need, seats, ranges),
    )
