"""The effects behind a lease: its door, and its member in a cell."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from edgellm.cluster.door import Door, open_door, reachable_hosts
from edgellm.cluster.member import Machine, RunningMember
from edgellm.cluster.switchboard import Switchboard
from edgellm.errors import unwrapped
from edgellm.hosting.quota_keeper import QuotaKeeper
from edgellm.leasing.lease import Lease
from edgellm.leasing.serve import CellNews, Doorway
from edgellm.p2p.network import Network
from edgellm.types.plan import ClusterPlan, Member

LAST_COUNT_S = 0.4
"""Engines tell four times in a second what they have computed; else a short lease would count for nothing."""
COUNT_S = 1.0
MAX_TOKENS = 1 << 53


@dataclass(frozen=True, slots=True)
class _OpenDoorway(Doorway):
    door: Door


class _RunningCell:
    """What a lease sees of its cell (`edgellm.leasing.serve.RunningCell`)."""

    def __init__(self, member: RunningMember, counted: Callable[[int], None], settles_s: float) -> None:
        """`counted` is told how many tokens the engine in the cell says that it has computed, the last after `settles_s`."""
        self._member = member
        self._counted = counted
        self._settles_s = settles_s
        self._failure = ""

    async def news(self) -> AsyncIterator[CellNews]:
        yield CellNews("cell")
        async for event in self._member.cell.events:
            match event.get("event"):
                case "phase":
                    yield CellNews(str(event.get("name", "")), str(event.get("detail", "")))
                case "joined" | "warm" as said:
                    yield CellNews(said)
                case "tokens":
                    self._counted(tokens_said(event))
                case "failed":
                    self._failure = str(event.get("detail", ""))

    async def settle(self) -> None:
        await trio.sleep(self._settles_s)

    async def wait(self) -> str:
        status = await self._member.cell.wait()
        if self._member.cell.broken_limit:
            return self._member.cell.broken_limit
        said = (
            self._failure or (self._member.cell.stderr_tail().strip().splitlines() or ["it said nothing"])[-1]
        )
        return f"its cell ended with status {status}: {said[:300]}"

    async def amend(self, plan: ClusterPlan) -> None:
        await self._member.amend(plan)


def tokens_said(event: Mapping[str, object]) -> int:
    """How many tokens an event tells of; 0 for anything that is no such number: the cell runs a stranger's code."""
    count = event.get("count")
    return count if isinstance(count, int) and 0 <= count <= MAX_TOKENS else 0


class CellRunner:
    """Runs leases of this host's models in cells (`edgellm.leasing.serve.Runner`)."""

    def __init__(
        self,
        network: Network,
        switchboard: Switchboard,
        machine: Machine,
        models: Mapping[str, Path],
        *,
        overlay_port: int = 0,
        quota: QuotaKeeper | None = None,
    ) -> None:
        """`models` maps digests to directories; `overlay_port` 0 takes a free port for each lease; `quota` is told what leases
        take.
        """
        self._network = network
        self._switchboard = switchboard
        self._machine = machine
        self._models = models
        self._overlay_port = overlay_port
        self._quota = quota

    @contextmanager
    def prepare(self, lease: Lease) -> Iterator[Doorway]:
        hosts = reachable_hosts(self._network.addresses)
        with open_door(hosts, port=self._overlay_port, mapped=self._network.mapped_port) as door:
            yield _OpenDoorway(door.identity.certificate_der, door.endpoints, door)

    @asynccontextmanager
    async def run(self, lease: Lease, plan: ClusterPlan, doorway: Doorway) -> AsyncIterator[_RunningCell]:
        assert isinstance(doorway, _OpenDoorway)
        plan = _with_all_granted(plan, lease)
        own = plan.of_lease(lease.id)
        assert own is not None
        with unwrapped():
            async with (
                self._machine.open_member(
                    self._switchboard, plan, own, doorway.door, self._models[lease.digest]
                ) as member,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._count_bytes, lease.id, member)
                counts = self._quota is not None and any(part.kind == "tokens" for part in self._quota.quota)
                yield _RunningCell(
                    member,
                    lambda tokens: self._count(lease.id, tokens=tokens),
                    LAST_COUNT_S if counts else 0.0,
                )
                nursery.cancel_scope.cancel()

    async def _count_bytes(self, lease: str, member: RunningMember) -> None:
        try:
            while True:
                await trio.sleep(COUNT_S)
                self._count(lease, transferred_bytes=member.transferred_bytes())
        finally:
            self._count(lease, transferred_bytes=member.transferred_bytes())

    def _count(self, lease: str, *, tokens: int | None = None, transferred_bytes: int | None = None) -> None:
        if self._quota is not None:
            self._quota.count(lease, tokens=tokens, transferred_bytes=transferred_bytes)


def _with_all_granted(plan: ClusterPlan, lease: Lease) -> ClusterPlan:
    """`plan` with all of the lease's memory for its member, of which a later plan may use more than this one does."""

    def granted(members: tuple[Member, ...]) -> tuple[Member, ...]:
        return tuple(
            replace(member, memory_bytes=lease.memory_bytes) if member.lease == lease.id else member
            for member in members
        )

    return replace(plan, members=granted(plan.members), spares=granted(plan.spares))
