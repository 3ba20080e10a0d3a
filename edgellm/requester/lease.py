"""Plan, reserve, and plan again without those who refuse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from edgellm.errors import PlanError
from edgellm.leasing.hold import HeldLease, Leases, LeasesRefused, Wish
from edgellm.leasing.terms import Terms
from edgellm.p2p.network import PeerAddress
from edgellm.planning.plan import make_plan
from edgellm.planning.resume import Held
from edgellm.requester.discover import Offers
from edgellm.types.plan import PlanRequest, StagePlan

MAX_ATTEMPTS = 4


async def lease_plan(
    leases: Leases, request: PlanRequest, offers: Offers, cluster: str, *, on_refusal: Callable[[str], None]
) -> tuple[StagePlan, tuple[HeldLease, ...]]:
    """The best plan whose hosts all granted, and their leases by stage.

    Raises PlanError when no plan is possible with the hosts that do not refuse, and LeasesRefused when hosts go on refusing.
    """
    candidates = offers.candidates
    refusal: LeasesRefused | None = None
    for _ in range(MAX_ATTEMPTS):
        try:
            stages = make_plan(request, candidates)
        except PlanError as error:
            raise (refusal or error) from error
        try:
            return stages, await leases.reserve(wishes(stages, cluster, offers))
        except LeasesRefused as error:
            refusal = error
            refused = {denial.peer for denial in error.denials}
            for denial in error.denials:
                on_refusal(f"{denial.name} refused ({denial.code}): {denial.reason}")
            candidates = tuple(entry for entry in candidates if entry.peer not in refused)
    assert refusal is not None
    raise refusal


def wishes(
    stages: StagePlan, cluster: str, offers: Offers, *, held: Collection[str] = ()
) -> tuple[Wish, ...]:
    """One lease for each stage whose host is not among those `held`."""
    return tuple(
        Wish(
            host=offers.hosts[stage.peer],
            name=stage.name,
            terms=_terms(stages, cluster, (stage.first_layer, stage.end_layer), stage.memory_bytes),
        )
        for stage in stages.stages
        if stage.peer not in held
    )


def spare_wish(spare: Held, stages: StagePlan, cluster: str, host: PeerAddress) -> Wish:
    """A lease of a host that is to stand by for any of the stages."""
    layers = (0, stages.request.shape.layers)
    return Wish(host=host, name=spare.name, terms=_terms(stages, cluster, layers, spare.memory_bytes))


def by_stage(stages: StagePlan, held: Sequence[HeldLease]) -> tuple[HeldLease, ...]:
    """The leases of the stages' hosts, all of which must be held."""
    of_peer = {lease.wish.host.peer: lease for lease in held}
    return tuple(of_peer[stage.peer] for stage in stages.stages)


def _terms(stages: StagePlan, cluster: str, layers: tuple[int, int], memory_bytes: int) -> Terms:
    return Terms(
        cluster=cluster,
        digest=stages.request.digest,
        first_layer=layers[0],
        end_layer=layers[1],
        devices=stages.tensor_parallel,
        memory_bytes=memory_bytes,
        fabric=stages.request.fabric,
        engine=stages.engine,
    )
