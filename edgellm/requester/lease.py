"""Plan, reserve, and plan again without those who refuse."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from edgellm.errors import PlanError
from edgellm.leasing.hold import Leases, LeasesRefused, Wish, hold_leases
from edgellm.leasing.terms import Terms
from edgellm.p2p.network import Network
from edgellm.planning.plan import make_plan
from edgellm.requester.discover import Offers
from edgellm.types.plan import PlanRequest, StagePlan

MAX_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class LeasedPlan:
    cluster: str
    stages: StagePlan
    leases: Leases


@asynccontextmanager
async def leased(
    network: Network, request: PlanRequest, offers: Offers, *, on_refusal: Callable[[str], None]
) -> AsyncIterator[LeasedPlan]:
    """The best plan whose hosts all granted their leases; they are held while the context lasts.

    Raises PlanError when no plan is possible with the hosts that do not refuse, LeasesRefused when hosts go on refusing, and
    HostLost out of the body when a host is lost.
    """
    candidates = offers.candidates
    refusal: LeasesRefused | None = None
    async with AsyncExitStack() as stack:
        for _ in range(MAX_ATTEMPTS):
            try:
                stages = make_plan(request, candidates)
            except PlanError as error:
                raise (refusal or error) from error
            cluster = secrets.token_hex(16)
            try:
                leases = await stack.enter_async_context(
                    hold_leases(network, wishes(stages, cluster, offers))
                )
            except LeasesRefused as error:
                refusal = error
                refused = {denial.peer for denial in error.denials}
                for denial in error.denials:
                    on_refusal(f"{denial.name} refused ({denial.code}): {denial.reason}")
                candidates = tuple(entry for entry in candidates if entry.peer not in refused)
                continue
            yield LeasedPlan(cluster, stages, leases)
            return
        assert refusal is not None
        raise refusal


def wishes(stages: StagePlan, cluster: str, offers: Offers) -> tuple[Wish, ...]:
    """One lease for each stage."""
    return tuple(
        Wish(
            host=offers.hosts[stage.peer],
            name=stage.name,
            terms=Terms(
                cluster=cluster,
                digest=stages.request.digest,
                first_layer=stage.first_layer,
                end_layer=stage.end_layer,
                devices=stages.tensor_parallel,
                memory_bytes=stage.memory_bytes,
                fabric=stages.request.fabric,
                engine=stages.engine,
            ),
        )
        for stage in stages.stages
    )
