"""The TP x PP shapes that a model and the hosts allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgellm.planning.fit import Footprint, footprint
from edgellm.planning.seats import Seat, take_seat
from edgellm.types.advert import Engine
from edgellm.types.model import ModelShape
from edgellm.types.plan import Candidate, PlanRequest


def splits_heads(shape: ModelShape, degree: int) -> bool:
    """Whether tensor parallelism of `degree` gives each rank the same whole heads.

    vLLM divides the attention heads evenly; KV heads evenly too, or it repeats each on equally many ranks.
    """
    if degree < 1 or shape.attention_heads % degree:
        return False
    return shape.kv_heads % degree == 0 or degree % shape.kv_heads == 0


def shapes(
    request: PlanRequest, engine: Engine, hosts: Sequence[Candidate]
) -> Iterator[tuple[Footprint, list[Seat], int]]:
    """For each TP x PP shape that `request` asks for or leaves open: its memory needs, the hosts with enough devices
    for its tensor-parallel degree, and its number of stages, which is at most the number of those hosts and of layers.
    """
    for degree in _degrees(request, hosts):
        need = footprint(
            request.shape,
            tensor_parallel=degree,
            context=request.context,
            sequences=request.sequences,
            device_kind=engine.device_kind,
            shares_kv=request.shares_kv,
        )
        taken = (take_seat(host, degree, request.workload, request.shape.element_bytes) for host in hosts)
        seats = [seat for seat in taken if seat is not None]
        most = min(len(seats), request.shape.layers)
        asked = request.pipeline_parallel
        for stages in range(1, most + 1) if asked is None else range(asked, min(asked, most) + 1):
            yield need, seats, stages


def _degrees(request: PlanRequest, hosts: Sequence[Candidate]) -> list[int]:
    if request.tensor_parallel is not None:
        return [request.tensor_parallel]
    most = max((len(host.devices) for host in hosts), default=0)
    return [degree for degree in range(1, most + 1) if splits_heads(request.shape, degree)]
