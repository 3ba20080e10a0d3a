"""A requester's side of leases: reserve on all hosts or on none, commit plans, hear their news, lose some, let go."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
import trio

from edgellm.errors import HostLost, LeaseError, NetworkError, ProtocolViolation
from edgellm.leasing import HEARTBEAT_S, PROTOCOL, SILENCE_S
from edgellm.leasing.codec import MAX_PLAN_BYTES, is_name
from edgellm.leasing.terms import Terms, certificate_from_wire, endpoints_from_wire, terms_to_wire
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Network, PeerAddress
from edgellm.trust.settle import Account, settle
from edgellm.types.plan import Endpoint
from edgellm.types.text import one_line
from edgellm.wire import wire_pb2

log = structlog.get_logger(__name__)

GRANT_TIMEOUT_S = 8.0
RELEASE_TIMEOUT_S = 1.5
NEWS_BACKLOG = 256
_LATE_S = 0.1
"""A wait that ends so much too late shows that this process was held up itself."""
_REMEDIES = {
    "policy": "ask its owner for an invite to the swarm or for --allow, or leave the host out with --peers; see `edgellm peers`"
}


@dataclass(frozen=True, slots=True)
class Wish:
    """One lease to be had."""

    host: PeerAddress
    name: str
    terms: Terms


@dataclass(frozen=True, slots=True)
class Denial:
    peer: str
    name: str
    code: str
    """A code of Refused, or "lost" where the host did not answer."""
    reason: str


class LeasesRefused(LeaseError):
    """At least one host did not grant; nothing is held."""

    def __init__(self, denials: tuple[Denial, ...]) -> None:
        first = denials[0]
        more = f" (and {len(denials) - 1} more)" if len(denials) > 1 else ""
        super().__init__(
            f"host {first.name} did not grant a lease: {first.reason}{more}",
            remedy=_REMEDIES.get(first.code, "try again in a moment, or see `edgellm peers` for who is free"),
        )
        self.denials = denials


@dataclass(frozen=True, slots=True)
class News:
    """Something a host tells of its cell: a phase, or that it is draining."""

    peer: str
    name: str
    phase: str
    detail: str


@dataclass(eq=False)
class HeldLease:
    wish: Wish
    messages: MessageStream
    lease: str
    devices: tuple[str, ...]
    certificate: bytes
    endpoints: tuple[Endpoint, ...]
    lends_until: float | None = None
    """Unix time, by the host's clock, at which it ends the lease at the latest; None where it does not say."""
    signs_receipts: bool = False
    since: float = field(default_factory=trio.current_time)
    sending: trio.Lock = field(default_factory=trio.Lock)
    alive: trio.CancelScope = field(default_factory=trio.CancelScope)
    lost: HostLost | None = None
    """Why it is one no longer."""
    has_joined: bool = False
    """Whether its member has said that it is in the cluster."""
    is_warm: bool = False
    """Whether it has said that it can run a stage at once."""
    ends_at: float | None = None
    """When its host, which is draining, will end it, in seconds of Unix time."""

    async def send(self, message: wire_pb2.FromRequester) -> None:
        async with self.sending:
            await self.messages.send(message, timeout_s=SILENCE_S)


class Leases:
    """The leases of one cluster, some of which may be lost, let go or had anew while it lives. Made by `open_leases`."""

    def __init__(self, network: Network, nursery: trio.Nursery, silence_s: float) -> None:
        self._network, self._nursery = network, nursery
        self.silence_s = silence_s
        """A host that says nothing for so long is taken for dead."""
        self._send_news, self.news = trio.open_memory_channel[News](NEWS_BACKLOG)
        self._held: list[HeldLease] = []
        self._changed = trio.Event()
        self.account = Account()
        """What receipts are to say, where any are wanted."""

    @property
    def held(self) -> tuple[HeldLease, ...]:
        """Those that are held now, in the order in which they were had."""
        return tuple(self._held)

    async def reserve(self, wishes: Sequence[Wish]) -> tuple[HeldLease, ...]:
        """Reserves all `wishes` or none, and keeps them alive. Raises LeasesRefused."""
        fresh = await _reserve_all(self._network, wishes)
        if copies := _copies(fresh, self._held):
            await _release_all(fresh, "it has another lease's id")
            raise LeasesRefused(copies)
        self._held += fresh
        for lease in fresh:
            self._nursery.start_soon(self._keep, lease)
        return fresh

    async def commit(self, plan_envelope: bytes) -> None:
        """Sends the signed plan to all hosts at once. One that cannot be reached is lost; that is told as any loss is."""
        message = wire_pb2.FromRequester(commit=wire_pb2.Commit(plan_envelope=plan_envelope))

        async def send(lease: HeldLease) -> None:
            try:
                await lease.send(message)
            except NetworkError:
                self._lose(lease, _lost(lease, "its connection closed"))

        async with trio.open_nursery() as nursery:
            for lease in self._held:
                nursery.start_soon(send, lease)

    async def release(self, leases: Sequence[HeldLease], reason: str) -> None:
        """Lets hosts have their devices back."""
        going = tuple(lease for lease in leases if lease in self._held)
        for lease in going:
            self._held.remove(lease)
            lease.alive.cancel()
            self.account.close(lease, self._network.peer)
        await _release_all(going, reason)

    def lose(self, lease: HeldLease, reason: str, *, has_failed: bool = True) -> None:
        """Takes a host for lost that its own stream does not show as lost."""
        self._lose(lease, _lost(lease, reason), has_failed=has_failed)

    async def loss(self, among: Sequence[HeldLease]) -> tuple[HeldLease, ...]:
        """Those `among` these that are lost, as soon as there is one."""
        while True:
            changed = self._changed
            if lost := tuple(lease for lease in among if lease.lost is not None):
                return lost
            await changed.wait()

    async def told(self) -> None:
        """Returns when a lease has been lost, or a host has said that its member joined or is warm, or that it is draining."""
        await self._changed.wait()

    async def _keep(self, lease: HeldLease) -> None:
        try:
            with lease.alive:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, lease)
                    nursery.start_soon(_beat, lease)
        except* HostLost as group:
            error = next(leaf for leaf in group.exceptions if isinstance(leaf, HostLost))
            self._lose(lease, error)

    def _lose(self, lease: HeldLease, error: HostLost, *, has_failed: bool = True) -> None:
        if lease not in self._held:
            return
        lease.lost = error
        self._held.remove(lease)
        lease.alive.cancel()
        self.account.close(lease, self._network.peer)
        if has_failed and lease.ends_at is None:
            self.account.lost(lease.wish.host.peer, lease.wish.name, str(error))
        # The host may only have seemed to be dead: it is to end what it runs.
        self._nursery.start_soon(_let_go, lease)
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _listen(self, lease: HeldLease) -> None:
        name, peer = lease.wish.name, lease.wish.host.peer
        while True:
            try:
                message = await self._next_message(lease)
            except ProtocolViolation as error:
                raise _lost(lease, str(error)) from error
            except NetworkError as error:
                raise _lost(lease, "its connection closed") from error
            match message.WhichOneof("message"):
                case "heartbeat":
                    continue
                case "event":
                    item = News(
                        peer, name, one_line(message.event.phase, 64), one_line(message.event.detail, 500)
                    )
                    if item.phase in ("joined", "warm"):
                        lease.has_joined = True
                        lease.is_warm = lease.is_warm or item.phase == "warm"
                        self._tell()
                case "draining":
                    lease.ends_at = message.draining.deadline_unix_ms / 1000 or None
                    until = "no longer" if lease.ends_at is None else f"until {lease.ends_at:.0f}"
                    item = News(peer, name, "draining", until)
                    self._tell()
                case "ended":
                    raise _lost(lease, one_line(message.ended.reason, 500), ended=True)
                case _:
                    raise _lost(lease, "it sent a message that has no place here")
            try:
                self._send_news.send_nowait(item)
            except trio.WouldBlock:
                log.warning("news of a host dropped: nobody reads them", host=name)
            except trio.BrokenResourceError:
                log.debug("news of a host after the reader left", host=name)

    async def _next_message(self, lease: HeldLease) -> wire_pb2.FromHost:
        """Raises HostLost for silence, and as `MessageStream.receive`."""
        silence_s = self.silence_s
        for _ in range(2):
            asked_at = trio.current_time()
            try:
                return await lease.messages.receive(wire_pb2.FromHost, timeout_s=silence_s)
            except NetworkError:
                waited_s = trio.current_time() - asked_at
                if waited_s < silence_s:
                    raise
                if waited_s < silence_s + _LATE_S:
                    break
            # This process was held up itself, and what was said meanwhile is not read yet.
        raise _lost(lease, f"it said nothing for {silence_s:g} s")


@asynccontextmanager
async def open_leases(network: Network, *, silence_s: float = SILENCE_S) -> AsyncIterator[Leases]:
    """Leases that live no longer than the context: each that is still held is released at its end.

    A host that says nothing for `silence_s` is taken for dead.
    """
    reason = "the requester is done"
    async with trio.open_nursery() as nursery:
        leases = Leases(network, nursery, silence_s)
        try:
            yield leases
        except BaseException:
            reason = "the requester gave up"
            raise
        finally:
            for lease in leases.held:
                lease.alive.cancel()  # what hosts say from now on is about receipts
            await settle(leases.account, leases.held, network.identity)
            await leases.release(leases.held, reason)
            nursery.cancel_scope.cancel()


async def _reserve_all(network: Network, wishes: Sequence[Wish]) -> tuple[HeldLease, ...]:
    held: dict[int, HeldLease] = {}
    denials: dict[int, Denial] = {}

    async def reserve(index: int, wish: Wish) -> None:
        outcome = await _reserve(network, wish)
        if isinstance(outcome, HeldLease):
            held[index] = outcome
        else:
            denials[index] = outcome

    try:
        async with trio.open_nursery() as nursery:
            for index, wish in enumerate(wishes):
                nursery.start_soon(reserve, index, wish)
    except BaseException:
        await _release_all(tuple(held.values()), "the requester gave up")
        raise
    if denials:
        await _release_all(tuple(held.values()), "another host did not grant")
        raise LeasesRefused(tuple(denials[index] for index in sorted(denials)))
    return tuple(held[index] for index in range(len(wishes)))


def _copies(fresh: Sequence[HeldLease], held: Sequence[HeldLease]) -> tuple[Denial, ...]:
    """Hosts that grant under the id of another lease, which they know from its plan: its host would refuse the next one."""
    ids = Counter(lease.lease for lease in (*fresh, *held))
    return tuple(
        Denial(lease.wish.host.peer, lease.wish.name, "invalid", "it granted a lease under another's id")
        for lease in fresh
        if ids[lease.lease] > 1
    )


async def _reserve(network: Network, wish: Wish) -> HeldLease | Denial:
    def denied(code: str, reason: str) -> Denial:
        return Denial(wish.host.peer, wish.name, code, reason)

    messages: MessageStream | None = None
    granted = False
    try:
        stream = await network.open_stream(
            wish.host.peer, PROTOCOL, addresses=wish.host.addresses, timeout_s=GRANT_TIMEOUT_S
        )
        messages = MessageStream(stream, max_bytes=MAX_PLAN_BYTES)
        await messages.send(wire_pb2.FromRequester(reserve=terms_to_wire(wish.terms)))
        answer = await messages.receive(wire_pb2.FromHost, timeout_s=GRANT_TIMEOUT_S)
        match answer.WhichOneof("message"):
            case "granted":
                lease = HeldLease(
                    wish=wish,
                    messages=messages,
                    lease=one_line(answer.granted.lease, 64),
                    devices=tuple(answer.granted.devices),
                    certificate=certificate_from_wire(answer.granted.overlay_certificate),
                    endpoints=endpoints_from_wire(list(answer.granted.overlay_endpoints)),
                    lends_until=answer.granted.lends_until_unix_ms / 1000 or None,
                    signs_receipts=answer.granted.signs_receipts,
                )
                # What does not fit into a plan would make one that no host takes.
                if len(lease.devices) != wish.terms.devices or not all(map(is_name, lease.devices)):
                    return denied("invalid", "it granted other devices than were asked for")
                if not is_name(lease.lease):
                    return denied("invalid", "it granted a lease without a proper id")
                if wish.terms.fabric == "direct" and (not lease.endpoints or ":" in lease.endpoints[0].host):
                    return denied("invalid", "it does not say at which IPv4 address it is")
                granted = True
                return lease
            case "refused":
                return denied(one_line(answer.refused.code, 32), one_line(answer.refused.reason, 300))
            case _:
                return denied("invalid", "it answered something else")
    except ProtocolViolation as error:
        return denied("invalid", str(error))
    except NetworkError as error:
        return denied("lost", str(error))
    finally:
        if messages is not None and not granted:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + RELEASE_TIMEOUT_S):
                await messages.reset()


async def _beat(lease: HeldLease) -> None:
    count = 0
    while True:
        count += 1
        try:
            await lease.send(wire_pb2.FromRequester(heartbeat=wire_pb2.Heartbeat(count=count)))
        except NetworkError as error:
            raise _lost(lease, "its connection closed") from error
        await trio.sleep(HEARTBEAT_S)


async def _let_go(lease: HeldLease) -> None:
    await _release_all((lease,), "it was taken for lost")


async def _release_all(held: tuple[HeldLease, ...], reason: str) -> None:
    async def release(lease: HeldLease) -> None:
        try:
            await lease.send(wire_pb2.FromRequester(release=wire_pb2.Release(reason=reason)))
        except NetworkError:
            log.debug("a host was gone before its lease was released", host=lease.wish.name)
        await lease.messages.aclose()

    with trio.CancelScope(shield=True, deadline=trio.current_time() + RELEASE_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            for lease in held:
                nursery.start_soon(release, lease)


def _lost(lease: HeldLease, reason: str, *, ended: bool = False) -> HostLost:
    verb = "ended its lease" if ended else "was lost"
    return HostLost(
        f"host {lease.wish.name} ({lease.wish.host.peer[-8:]}) {verb}: {reason}",
        remedy="ask again: the planner will choose from the hosts that are left",
    )
