"""Where ranks must run, and where they say they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.wire.backend_pb2 import Stage


@dataclass(frozen=True, order=True)
class RankPlacement:
    """One rank: its address, and the layers [first_layer, end_layer) it holds."""

    rank: int
    address: str
    first_layer: int
    end_layer: int


def planned_placement(stages: Sequence[Stage], tensor_parallel: int) -> tuple[RankPlacement, ...]:
    """Placement by rank, as vLLM numbers ranks: stage by stage, tensor-parallel ranks within."""
    return tuple(
        RankPlacement(index * tensor_parallel + shard, stage.address, stage.first_layer, stage.end_layer)
        for index, stage in enumerate(stages)
        for shard in range(tensor_parallel)
    )


def difference(planned: Sequence[RankPlacement], real: Sequence[RankPlacement]) -> str:
    """Says in one line where the two differ; "" when they agree."""
    if len(planned) != len(real):
        return f"{len(real)} ranks run, {len(planned)} were planned"
    return "; ".join(
        f"rank {want.rank} should run layers {want.first_layer} to {want.end_layer} on {want.address}, "
        f"but runs {have.first_layer} to {have.end_layer} on {have.address}"
        for want, have in zip(planned, sorted(real), strict=True)
        if want != have
    )


class PlacementReport:
    """Mixed into vLLM's worker class."""

    def edgellm_placement(self) -> tuple[int, str, int, int]:
        """This rank's (rank, address, first_layer, end_layer): the layers are those its model really holds."""
        import ray

        worker: Any = self
        for module in worker.model_runner.get_model().modules():
            if hasattr(module, "start_layer") and hasattr(module, "end_layer"):
                return worker.rank, ray.util.get_node_ip_address(), module.start_layer, module.end_layer
        raise RuntimeError("this model's class does not say which layers it holds")
