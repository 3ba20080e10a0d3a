"""A requester's side of leases: reserve on all hosts or on none, commit the plan, hear their news, let go."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
import trio

from edgellm.errors import HostLost, LeaseError, NetworkError, ProtocolViolation
from edgellm.leasing import HEARTBEAT_S, PROTOCOL, SILENCE_S
from edgellm.leasing.codec import MAX_PLAN_BYTES
from edgellm.leasing.terms import Terms, certificate_from_wire, endpoints_from_wire, terms_to_wire
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Network, PeerAddress
from edgellm.types.plan import Endpoint
from edgellm.wire import wire_pb2

log = structlog.get_logger(__name__)

GRANT_TIMEOUT_S = 8.0
RELEASE_TIMEOUT_S = 1.5
NEWS_BACKLOG = 256


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
            remedy="try again in a moment, or see `edgellm peers` for who is free",
        )
        self.denials = denials


@dataclass(frozen=True, slots=True)
class News:
    """Something a host tells of its cell: a phase, or that it is draining."""

    peer: str
    name: str
    phase: str
    detail: str


@dataclass
class HeldLease:
    wish: Wish
    messages: MessageStream
    lease: str
    devices: tuple[str, ...]
    certificate: bytes
    endpoints: tuple[Endpoint, ...]
    sending: trio.Lock = field(default_factory=trio.Lock)

    async def send(self, message: wire_pb2.FromRequester) -> None:
        async with self.sending:
            await self.messages.send(message, timeout_s=SILENCE_S)


@dataclass
class Leases:
    """All leases of one cluster, in the order of the wishes; held until the context that gave them ends."""

    held: tuple[HeldLease, ...]
    news: trio.MemoryReceiveChannel[News]

    async def commit(self, plan_envelope: bytes) -> None:
        """Sends the signed plan to every host. Raises HostLost when one cannot be reached any more."""
        message = wire_pb2.FromRequester(commit=wire_pb2.Commit(plan_envelope=plan_envelope))
        for lease in self.held:
            try:
                await lease.send(message)
            except NetworkError as error:
                raise _lost(lease, str(error)) from error


@asynccontextmanager
async def hold_leases(network: Network, wishes: Sequence[Wish]) -> AsyncIterator[Leases]:
    """Reserves all `wishes` or none, and keeps them alive while the body runs.

    Raises LeasesRefused (nothing is held then), and HostLost, out of the body, as soon as a held host ends its lease, dies or
    falls silent. Every lease is released at the end.
    """
    send_news, news = trio.open_memory_channel[News](NEWS_BACKLOG)
    held = await _reserve_all(network, wishes)
    reason = "the requester is done"
    try:
        async with trio.open_nursery() as nursery:
            for lease in held:
                nursery.start_soon(_listen, lease, send_news)
                nursery.start_soon(_beat, lease)
            yield Leases(held, news)
            nursery.cancel_scope.cancel()
    except BaseException:
        reason = "the requester gave up"
        raise
    finally:
        await _release_all(held, reason)


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
                    lease=answer.granted.lease[:64],
                    devices=tuple(answer.granted.devices),
                    certificate=certificate_from_wire(answer.granted.overlay_certificate),
                    endpoints=endpoints_from_wire(list(answer.granted.overlay_endpoints)),
                )
                if len(lease.devices) != wish.terms.devices:
                    return denied("invalid", "it granted other devices than were asked for")
                granted = True
                return lease
            case "refused":
                return denied(answer.refused.code[:32], answer.refused.reason[:300])
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


async def _listen(lease: HeldLease, news: trio.MemorySendChannel[News]) -> None:
    name, peer = lease.wish.name, lease.wish.host.peer
    while True:
        try:
            message = await lease.messages.receive(wire_pb2.FromHost, timeout_s=SILENCE_S)
        except NetworkError as error:
            raise _lost(lease, str(error)) from error
        match message.WhichOneof("message"):
            case "heartbeat":
                continue
            case "event":
                item = News(peer, name, message.event.phase[:64], message.event.detail[:500])
            case "draining":
                left_s = message.draining.deadline_unix_ms / 1000
                item = News(peer, name, "draining", f"until {left_s:.0f}" if math.isfinite(left_s) else "")
            case "ended":
                raise _lost(lease, f"{message.ended.reason[:500]}", ended=True)
            case _:
                raise _lost(lease, "it sent a message that has no place here")
        try:
            news.send_nowait(item)
        except trio.WouldBlock:
            log.warning("news of a host dropped: nobody reads them", host=name)
        except trio.BrokenResourceError:
            log.debug("news of a host after the reader left", host=name)


async def _beat(lease: HeldLease) -> None:
    count = 0
    while True:
        count += 1
        try:
            await lease.send(wire_pb2.FromRequester(heartbeat=wire_pb2.Heartbeat(count=count)))
        except NetworkError as error:
            raise _lost(lease, str(error)) from error
        await trio.sleep(HEARTBEAT_S)


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
