"""Keeps a cluster answering while its hosts come and go.

The head stays; what is lost is members. The engine's core is then ended at once, for it would hang; others take the places of
those that are gone, spares first; and the head goes on over the new members with every answer that it had begun.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
import trio

from edgellm.cluster.assemble import Grant, assemble, next_number
from edgellm.cluster.head import Alarm, Head, Load, Progress, loss_explained
from edgellm.engine.client import EngineClient
from edgellm.errors import (
    DiscoveryError,
    EdgeError,
    EngineError,
    HostLost,
    LeaseError,
    NetworkError,
    PlanError,
    unwrapped,
)
from edgellm.leasing import HEARTBEAT_S, SILENCE_S
from edgellm.leasing.codec import seal_plan
from edgellm.leasing.hold import HeldLease, Leases, LeasesRefused
from edgellm.p2p.network import Network, PeerAddress
from edgellm.planning.eligible import asked_peers
from edgellm.planning.plan import make_plan
from edgellm.planning.resume import Held, as_held, in_turn, refilled, spare_for, still_asked
from edgellm.requester.discover import Lent, Offers
from edgellm.requester.lease import by_stage, lease_plan, spare_wish, wishes
from edgellm.types.plan import Candidate, ClusterPlan, PlanRequest, StagePlan
from edgellm.wire import backend_pb2

log = structlog.get_logger(__name__)

RETRY_S = 0.5
AVOID_S = 60.0
"""How long a host that was lost is not chosen while there are others."""
LOOK_S = 1.0
OWN_WORD_S = 0.3
"""How long a host may take to say why a rank of its is gone."""
SPARE_SILENCE_SHARE = 3 / 8
"""To be wrong about a host's death costs a second or two where a spare stands by, and far more where none does."""
LEAST_SILENCE_S = 3 * HEARTBEAT_S
"""A packet that is lost and sent again is no silence."""
STALL_SHARE = 1.25
"""Of the silence after which a host is taken for lost: that of a rank, which is asked only once its step takes long.

Not less while a spare stands by, as a host's is: what the engine was loaded with stays, and the spare may not.
"""
MAX_FAILED_LOADS = 6
"""In a row."""
STABLE_S = 10.0
"""A cluster that breaks sooner than this after it was mended was not mended."""
SPARE_RETRY_S = 5.0
"""After this long without a host for a spare, one is looked for again."""
_MIN_STEP_S = 0.002
"""Plans are told apart by the millisecond in which they were made."""

OnProgress = Callable[[Progress], None]
Discover = Callable[[dict[str, Lent]], Awaitable[Offers]]
"""Who offers the model now; what it is given is lent to us, and counts as free."""


@dataclass
class Cluster:
    """A cluster that answers, or will again."""

    plan: ClusterPlan
    stages: StagePlan
    head: Head
    recovering: str = ""
    """Why it does not answer now; empty while it does."""
    recoveries: int = 0
    lenders: int = 0
    """Hosts that lend to it now, spares included."""
    standing_by: Callable[[], tuple[str, ...]] = lambda: ()
    """Peers that can take the place of one that is lost at once. A spare in its plan that is not among them comes up yet."""

    @property
    def engine(self) -> EngineClient:
        return self.head.engine

    @property
    def engine_socket(self) -> Path:
        return self.head.engine_socket

    @property
    def api_socket(self) -> Path | None:
        """Where the engine serves its OpenAI-compatible API over HTTP, if it was asked to and does."""
        return self.head.api_socket


@dataclass(frozen=True, slots=True)
class _Seats:
    stages: StagePlan
    leases: tuple[HeldLease, ...]
    """Of the stages, in their order."""


@dataclass
class Keeper:
    """Forms a cluster around a head, and forms it anew whenever that is needed."""

    network: Network
    head: Head
    leases: Leases
    request: PlanRequest
    load: Load
    discover: Discover
    now: Callable[[], float]
    on_progress: OnProgress
    patience_s: float
    """How long others are looked for when a host is lost; 0: not at all."""
    spares: int = 0
    """Hosts that stand by."""
    silence_s: float = SILENCE_S
    """A host that says nothing for so long is taken for lost; `SPARE_SILENCE_SHARE` of it where a spare can take its place at
    once."""
    on_members: Callable[[Sequence[PeerAddress]], None] = lambda members: None
    """Is told who runs stages now."""
    _cluster: Cluster | None = None
    _seats: _Seats | None = None
    _numbers: dict[HeldLease, int] = field(default_factory=dict)
    _last_number: int = 0
    _issued_at: float = 0.0
    _formed_at: float = -math.inf
    """When it was last formed anew."""
    _unstable_since: float = 0.0
    _avoid: dict[str, float] = field(default_factory=dict)
    _suspicions: int = 0
    _slow: dict[HeldLease, str] = field(default_factory=dict)
    _changing: trio.Lock = field(default_factory=trio.Lock)
    _enlisting: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def cluster(self) -> Cluster:
        assert self._cluster is not None, "it is there once `begin` has returned"
        return self._cluster

    async def begin(self, offers: Offers) -> None:
        """Leases hosts of `offers` and loads the engine over them. Raises EdgeErrors where that cannot be."""
        stages, leases = await lease_plan(
            self.leases,
            self.request,
            offers,
            self.head.alone.cluster,
            on_refusal=lambda line: self.on_progress(Progress("", "lease", line)),
        )
        # A host calls itself what it likes: another of that name is not to take the place of one that is lost.
        self.request = replace(self.request, peers=asked_peers(self.request.peers, offers.candidates))
        for stage in stages.stages:
            relay = self.network.relay_of(stage.peer)
            through = f", through relay …{relay[-8:]}" if relay else ""
            layers = f"layers {stage.first_layer}-{stage.end_layer - 1}{through}"
            self.on_progress(Progress(stage.name, "leased", layers))
        seats = _Seats(stages, leases)
        try:
            await self._form(seats)
        except HostLost as error:
            # There is no answer yet that would be worth waiting for: only those who are there now are asked.
            await self._recover(error, waits=False)

    async def keep(self) -> None:
        """Runs until it is cancelled. Raises HostLost where nobody can take the place of a host that was lost."""
        with unwrapped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_spares)
                while True:
                    await self._recover(await self._broken())

    # What goes wrong.

    async def _broken(self) -> EdgeError:
        """Returns why the cluster has to be formed anew, once it has to."""
        reasons: list[EdgeError] = []

        async def first(wait: Callable[[], Awaitable[EdgeError]]) -> None:
            reasons.append(await wait())
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for wait in (self._lost, self._alarmed, self._replaceable):
                nursery.start_soon(first, wait)
        return reasons[0]

    async def _lost(self) -> EdgeError:
        assert self._seats is not None
        lost = await self.leases.loss(self._seats.leases)
        assert lost[0].lost is not None
        return lost[0].lost

    async def _alarmed(self) -> EdgeError:
        async for alarm in self.head.alarms:
            lease = self._lease_at(alarm)
            if alarm.is_lost:
                is_known = lease is not None
                lease = lease or self._suspect()
                if lease is None:
                    return EngineError(f"the engine lost a member: {alarm.detail}")
                # A host that ends a lease kills its cell, which the engine may notice before the host's own word is here.
                with trio.move_on_after(OWN_WORD_S):
                    await self.leases.loss((lease,))
                self.leases.lose(lease, alarm.detail, has_failed=is_known)
                assert lease.lost is not None
                return lease.lost
            if lease is not None:
                self._slow[lease] = alarm.detail
                self.on_progress(Progress(lease.wish.name, "slow", alarm.detail))
        raise AssertionError("a head's alarms end with it")

    def _lease_at(self, alarm: Alarm) -> HeldLease | None:
        plan = self.cluster.plan
        member = plan.at(alarm.address) if alarm.address else None
        return next((lease for lease in self.leases.held if member and lease.lease == member.lease), None)

    def _suspect(self) -> HeldLease | None:
        """One of several members between which something is lost: with another in its place they may do. Each time the next.

        Nobody knows whose fault it is, so it is held against nobody; and where there is nobody else they are chosen again.
        """
        seated = [lease for lease in self._seats.leases if lease in self.leases.held] if self._seats else []
        self._suspicions += 1
        return seated[-self._suspicions % len(seated)] if len(seated) > 1 else None

    async def _replaceable(self) -> EdgeError:
        """Waits until a member that is to leave, or slow, can be replaced by a spare that has joined."""
        while True:
            leaving = self._leaving()
            assert self._seats is not None
            joined = [_held(lease) for lease in self._spare_leases() if lease.has_joined]
            gone = {lease.wish.host.peer for lease in leaving}
            if leaving and refilled(self._seats.stages, joined, gone=gone) is not None:
                for lease in leaving:
                    why = self._slow.pop(lease, "its owner wants it back")
                    self.leases.lose(lease, why, has_failed=False)
                assert leaving[0].lost is not None
                return leaving[0].lost
            with trio.move_on_after(LOOK_S):
                await self.leases.told()

    def _leaving(self) -> tuple[HeldLease, ...]:
        """Members that run stages and are draining, or too slow."""
        seated = self._seats.leases if self._seats is not None else ()
        return tuple(
            lease
            for lease in seated
            if lease in self.leases.held and (lease.ends_at is not None or lease in self._slow)
        )

    def _standing_by(self) -> tuple[str, ...]:
        return tuple(lease.wish.host.peer for lease in self._spare_leases() if lease.is_warm)

    def _spare_leases(self) -> tuple[HeldLease, ...]:
        seated = self._seats.leases if self._seats is not None else ()
        return tuple(lease for lease in self.leases.held if lease not in seated and lease.ends_at is None)

    # How it is mended.

    async def _recover(self, why: EdgeError, *, waits: bool = True) -> None:
        cluster = self._cluster
        now = begun = trio.current_time()
        if now - self._formed_at > STABLE_S:
            self._unstable_since = now
        else:
            # What breaks as soon as it is mended gets no further patience, and no haste.
            await trio.sleep(RETRY_S)
        if cluster is not None:
            cluster.recovering = str(why)
        self.on_progress(Progress("", "lost", str(why)))
        if not self.patience_s or now > self._unstable_since + self.patience_s:
            raise why
        self._enlisting.cancel()
        anew, said, failed_loads = False, "", 0
        looking_since = self._unstable_since
        async with self._changing:
            while True:
                are_found = False
                try:
                    await self.head.engine.suspend()
                    seats = await self._seated_again(anew, with_avoided=waits)
                    are_found = True
                    await self._form(seats)
                    break
                except (LeaseError, PlanError, DiscoveryError, EngineError, NetworkError) as error:
                    # Hosts that are still there may hold something that is broken.
                    anew = isinstance(error, EngineError)
                    if not waits and not isinstance(error, LeaseError):
                        raise why from error
                    if are_found:
                        # Loading takes its time, and is not what patience is for.
                        failed_loads += 1
                        looking_since = trio.current_time()
                    if are_found and anew and (suspect := self._suspect()) is not None:
                        # Perhaps two of them do not reach each other: with somebody else in the place of each in turn they do.
                        self._avoid[suspect.wish.host.peer] = trio.current_time() + AVOID_S
                    if (
                        failed_loads == MAX_FAILED_LOADS
                        or trio.current_time() > looking_since + self.patience_s
                    ):
                        raise _nobody(why, error, self.patience_s) from error
                    if str(error) != said:
                        said = str(error)
                        self.on_progress(Progress("", "waiting", said))
                    await trio.sleep(RETRY_S)
        cluster = self.cluster
        cluster.recovering = ""
        cluster.recoveries += 1
        self._formed_at = trio.current_time()
        seconds = trio.current_time() - begun
        names = ", ".join(
            f"{stage.name} {stage.first_layer}-{stage.end_layer - 1}" for stage in seats.stages.stages
        )
        self.on_progress(Progress("", "resumed", f"after {seconds:.1f} s: {names}"))

    async def _seated_again(self, anew: bool, with_avoided: bool) -> _Seats:
        """Who runs which layers from now on; all of them lend. Raises EdgeErrors where there are too few."""
        before = self._seats
        assert before is not None
        for lease in before.leases:
            if lease.lost is not None:
                self._avoid[lease.wish.host.peer] = trio.current_time() + AVOID_S
        held = tuple(lease for lease in self.leases.held if lease.ends_at is None)
        staying = {lease.wish.host.peer for lease in held}
        gone = {stage.peer for stage in before.stages.stages if stage.peer not in staying}
        if not anew:
            spares = [_held(lease) for lease in self._spare_leases()]
            if (stages := refilled(before.stages, spares, gone=gone)) is not None:
                return _Seats(stages, by_stage(stages, held))
        self.on_progress(Progress("", "discover", self.request.model))
        lent = {lease.wish.host.peer: Lent(lease.devices, lease.wish.terms.memory_bytes) for lease in held}
        offers = await self.discover(lent)
        # One that was lost lately and only restarted is better than none.
        choices = in_turn(offers.candidates, self._avoided())
        for candidates in choices if with_avoided else choices[:1]:
            request = still_asked(self.request, candidates)
            if not anew and (seats := await self._extended(request, before, candidates, offers, held)):
                return seats
            try:
                stages = make_plan(request, candidates)
            except PlanError:
                continue
            # Their cells are of another shape, or broken.
            await self.leases.release(self.leases.held, "the cluster is made anew")
            return _Seats(stages, await self._reserved(stages, offers, ()))
        # Says what is missing, where that is not only those who were lost lately.
        make_plan(still_asked(self.request, offers.candidates), offers.candidates)
        raise PlanError(f"no other host can run {self.request.model} now")

    def _avoided(self) -> list[str]:
        """Peers that were lost lately, the last one last: whose fault it was is not always known, then that says a little."""
        now = trio.current_time()
        self._avoid = {peer: until for peer, until in self._avoid.items() if until > now}
        return sorted(self._avoid, key=self._avoid.__getitem__)

    async def _extended(
        self,
        request: PlanRequest,
        before: _Seats,
        candidates: tuple[Candidate, ...],
        offers: Offers,
        held: Sequence[HeldLease],
    ) -> _Seats | None:
        """Seats of which those who lend already keep what they run; None where that is not possible."""
        narrowed = as_held(candidates, [_held(lease) for lease in held])
        same_degree = replace(request, tensor_parallel=before.stages.tensor_parallel)
        try:
            stages = make_plan(same_degree, narrowed)
        except PlanError:
            return None
        return _Seats(stages, await self._reserved(stages, offers, held))

    async def _reserved(
        self, stages: StagePlan, offers: Offers, held: Sequence[HeldLease]
    ) -> tuple[HeldLease, ...]:
        """The leases of the stages' hosts, of which those `held` are there already. Raises LeasesRefused."""
        peers = {lease.wish.host.peer for lease in held}
        wanted = wishes(stages, self.head.alone.cluster, offers, held=peers)
        try:
            fresh = await self.leases.reserve(wanted) if wanted else ()
        except LeasesRefused as error:
            for denial in error.denials:
                if denial.code not in ("busy", "memory"):
                    self._avoid[denial.peer] = trio.current_time() + AVOID_S
            raise
        return by_stage(stages, (*held, *fresh))

    async def _form(self, seats: _Seats) -> None:
        """Puts the plan of these seats in force and loads the engine. Raises HostLost, EngineError or CellError."""
        self._seats = seats
        plan = await self._put_in_force(seats)
        self.on_members([lease.wish.host for lease in seats.leases])
        with unwrapped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._raise_loss, seats)
                async with loss_explained():
                    load = replace(self.load, stall_s=STALL_SHARE * self.silence_s)
                    await self.head.load(plan, seats.stages, load, self.on_progress)
                nursery.cancel_scope.cancel()
        # What the engine noticed of members that are gone.
        with contextlib.suppress(trio.WouldBlock):
            while True:
                self.head.alarms.receive_nowait()
        if (await self.head.engine.health()).state == backend_pb2.HealthReply.SUSPENDED:
            # One that is there broke at once: what the engine said of it was among that, and it will not say so again.
            raise EngineError("the engine lost a member as soon as it was loaded")
        if self._cluster is None:
            self._cluster = Cluster(plan, seats.stages, self.head, standing_by=self._standing_by)
        self._cluster.plan, self._cluster.stages = plan, seats.stages
        self._cluster.lenders = len(self.leases.held)

    async def _raise_loss(self, seats: _Seats) -> None:
        lost = await self.leases.loss(seats.leases)
        assert lost[0].lost is not None
        raise lost[0].lost

    async def _put_in_force(self, seats: _Seats) -> ClusterPlan:
        """Tells all members, the head first, who they are now. Hosts that are no longer in it are let go."""
        seated = set(seats.leases)
        spares = tuple(lease for lease in self.leases.held if lease not in seated and lease.ends_at is None)
        unused = spares[self.spares + len(self._leaving()) :]
        leaving = tuple(lease for lease in self.leases.held if lease not in seated and lease not in spares)
        await self.leases.release((*unused, *leaving), "the cluster goes on without it")
        self._issued_at = max(self._issued_at + _MIN_STEP_S, self.now())
        plan = assemble(
            self.head.alone,
            seats.stages,
            [self._grant(lease) for lease in seats.leases],
            issued_at=self._issued_at,
            spares=[self._grant(lease) for lease in spares if lease not in unused],
        )
        await self.head.admit(plan)
        await self.leases.commit(seal_plan(plan, self.network.identity))
        return plan

    def _grant(self, lease: HeldLease) -> Grant:
        held = self.leases.held
        self._numbers = {known: number for known, number in self._numbers.items() if known in held}
        if lease not in self._numbers:
            self._last_number = next_number(self._last_number, tuple(self._numbers.values()))
            self._numbers[lease] = self._last_number
        return Grant(
            peer=lease.wish.host.peer,
            lease=lease.lease,
            devices=lease.devices,
            memory_bytes=lease.wish.terms.memory_bytes,
            certificate=lease.certificate,
            endpoints=lease.endpoints,
            addresses=lease.wish.host.addresses,
            number=self._numbers[lease],
        )

    # Who stands by.

    async def _keep_spares(self) -> None:
        """Has as many spares as are wanted, and one for each member that is to leave."""
        look_at = -math.inf
        while True:
            cluster = self._cluster
            self.leases.silence_s = self._silence_s()
            missing = self.spares + len(self._leaving()) - len(self._spare_leases())
            is_due = missing > 0 and trio.current_time() >= look_at
            if is_due and cluster is not None and not cluster.recovering:
                with trio.CancelScope() as self._enlisting:
                    try:
                        async with self._changing:
                            if await self._enlist():
                                continue
                    except (LeaseError, PlanError, DiscoveryError, NetworkError) as error:
                        log.info("no spare could be had", error=str(error))
                    look_at = trio.current_time() + SPARE_RETRY_S
            with trio.move_on_after(LOOK_S):
                await self.leases.told()

    def _silence_s(self) -> float:
        is_mended = self._cluster is not None and not self._cluster.recovering
        return silence_with_spare(self.silence_s) if is_mended and self._standing_by() else self.silence_s

    async def _enlist(self) -> bool:
        """One more spare; whether there was one to be had."""
        seats = self._seats
        assert seats is not None
        offers = await self.discover({})
        taken = {lease.wish.host.peer for lease in self.leases.held}
        # One that was lost lately is better than none here, too: nothing depends on a spare.
        choices = in_turn(offers.candidates, self._avoided())
        found = (spare_for(seats.stages, among, taken=taken, asked=self.request.peers) for among in choices)
        spare = next((held for held in found if held is not None), None)
        if spare is None:
            return False
        wish = spare_wish(spare, seats.stages, self.head.alone.cluster, offers.hosts[spare.peer])
        fresh = await self.leases.reserve([wish])
        try:
            self.cluster.plan = await self._put_in_force(seats)
        except BaseException:
            # A host that has not heard of a plan yet cannot be given a stage.
            await self.leases.release(fresh, "the requester needs it otherwise")
            raise
        self.cluster.lenders = len(self.leases.held)
        self.on_progress(Progress(spare.name, "spare", "comes up, to stand by"))
        return True


def silence_with_spare(silence_s: float) -> float:
    """After how many silent seconds a host is taken for lost while a spare stands by; `silence_s` where none does."""
    return min(silence_s, max(SPARE_SILENCE_SHARE * silence_s, LEAST_SILENCE_S))


def _held(lease: HeldLease) -> Held:
    wish = lease.wish
    return Held(wish.host.peer, wish.name, lease.devices, wish.terms.memory_bytes)


def _nobody(why: EdgeError, last: EdgeError, patience_s: float) -> HostLost:
    return HostLost(
        f"{why}; nobody could take its place within {patience_s:g} s: {last}",
        remedy="ask again when more hosts are there, or let it wait longer with --patience",
    )
