"""A requester's side of discovery: find hosts, ask each for its advert, keep what is good, count what is not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from edgellm.discovery.check import fault
from edgellm.discovery.codec import MAX_ADVERT_BYTES, open_advert
from edgellm.discovery.keys import HOSTS_KEY, keys_of, model_key
from edgellm.discovery.known_hosts import KnownHosts
from edgellm.discovery.patience import patience_s
from edgellm.discovery.publish import PROTOCOL
from edgellm.errors import NetworkError, ProtocolViolation
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Network, PeerAddress
from edgellm.types.advert import HostAdvert
from edgellm.types.member import HOST
from edgellm.wire import wire_pb2

ASK_TIMEOUT_S = 5.0
MAX_ASKED_AT_ONCE = 32
TURN_S = 0.5
"""After so long another host is asked as well, though this one has not answered."""
MAX_PROVIDERS = 512
KNOWN_S = 1.5
"""For hosts that answered before and that nobody lists now: they are there at once or not at all."""


@dataclass
class SequenceBook:
    """The newest advert sequence seen of each peer, so that an older one cannot be replayed."""

    newest: dict[str, int] = field(default_factory=dict)
    known: KnownHosts | None = None
    """Hosts that answered before; None: nobody remembers any."""

    def last(self, peer: str) -> int:
        return self.newest.get(peer, 0)

    def saw(self, peer: str, sequence: int) -> None:
        self.newest[peer] = max(sequence, self.last(peer))


@dataclass(frozen=True, slots=True)
class Sighting:
    """A host that answered just now, and how long its answer took."""

    advert: HostAdvert
    round_trip_s: float
    relay: str = ""
    """The peer through which alone the host is reached from here; "" where it is reached directly."""


@dataclass(frozen=True, slots=True)
class Found:
    sightings: tuple[Sighting, ...]
    """By peer id, so that equal swarms give equal plans."""
    refused: dict[str, int]
    """Why adverts were not believed, and how many of each: "forged", "expired", "unreachable", ..."""
    listed: int
    """How many providers the DHT listed."""
    unanswered: int = 0
    """Of them, those that were not waited for any longer."""


async def find_hosts(
    network: Network,
    model: str | None,
    *,
    book: SequenceBook,
    now: Callable[[], float],
    timeout_s: float = ASK_TIMEOUT_S,
    patient: bool = True,
) -> Found:
    """Asks every host that the DHT lists for `model` (all hosts when None), and those that `book` knows, for its
    advert; each has `timeout_s`.

    Who is not `patient` waits no longer than `edgellm.discovery.patience` says for hosts that take longer than the others.

    Raises DiscoveryError or NetworkError only when the DHT cannot be asked at all.
    """
    key = HOSTS_KEY if model is None else model_key(model)
    providers = [provider for provider in await network.find_providers(key) if provider.peer != network.peer]
    listed = {provider.peer for provider in providers}
    known = [host for host in book.known.of(key, now()) if host.peer not in listed] if book.known else []
    sightings: list[Sighting] = []
    refused: Counter[str] = Counter()
    gone: list[str] = []
    slots = trio.CapacityLimiter(MAX_ASKED_AT_ONCE)
    answered_s: list[float] = []
    asked: dict[str, tuple[float, trio.CancelScope]] = {}
    """Those that have not answered yet, since when, and what ends the waiting."""
    unanswered = 0

    def limit_s() -> float:
        return timeout_s if patient else min(timeout_s, patience_s(answered_s))

    async def ask(provider: PeerAddress, over: trio.Event) -> None:
        nonlocal unanswered
        begun = trio.current_time()
        with trio.CancelScope(deadline=begun + limit_s()) as waiting:
            asked[provider.peer] = (begun, waiting)
            try:
                sightings.append(await ask_host(network, provider, book=book, now=now, timeout_s=timeout_s))
                answered_s.append(trio.current_time() - begun)
            except ProtocolViolation as error:
                refused[getattr(error, "fault", "malformed")] += 1
            except NetworkError:
                refused["unreachable"] += 1
        del asked[provider.peer]
        over.set()
        if waiting.cancelled_caught and trio.current_time() - begun < timeout_s:
            unanswered += 1
        elif waiting.cancelled_caught:
            refused["unreachable"] += 1
        for since, other in asked.values():
            other.deadline = since + limit_s()

    async def ask_known(host: PeerAddress) -> None:
        try:
            sighting = await ask_host(network, host, book=book, now=now, timeout_s=min(KNOWN_S, timeout_s))
        except NetworkError:
            gone.append(host.peer)
        else:
            if key in keys_of(sighting.advert):
                sightings.append(sighting)

    async with trio.open_nursery() as nursery:

        async def ask_in_turn(provider: PeerAddress) -> None:
            async with slots:
                over = trio.Event()
                nursery.start_soon(ask, provider, over)
                # Those that are gone are not to keep others from being asked.
                with trio.move_on_after(TURN_S):
                    await over.wait()

        for host in known:
            nursery.start_soon(ask_known, host)
        for provider in providers[:MAX_PROVIDERS]:
            nursery.start_soon(ask_in_turn, provider)
    if book.known is not None:
        book.known.saw([sighting.advert for sighting in sightings], gone, keys_of, now())
    sightings.sort(key=lambda sighting: sighting.advert.peer)
    return Found(tuple(sightings), dict(refused), len(providers), unanswered)


class UnbelievableAdvert(ProtocolViolation):
    """A peer's advert failed `check.fault`."""

    def __init__(self, peer: str, fault: str) -> None:
        super().__init__(f"the advert of peer {peer} is {fault}")
        self.fault = fault


async def ask_host(
    network: Network,
    provider: PeerAddress,
    *,
    book: SequenceBook,
    now: Callable[[], float],
    timeout_s: float = ASK_TIMEOUT_S,
) -> Sighting:
    """A host's advert as it is now; each step of asking has `timeout_s`.

    Raises NetworkError when it does not answer, ProtocolViolation for an advert that is not to be believed.
    """
    stream = await network.open_stream(
        provider.peer, PROTOCOL, addresses=provider.addresses, timeout_s=timeout_s
    )
    messages = MessageStream(stream)
    try:
        member = network.member(provider.peer)
        if member is not None and HOST not in member.roles:
            raise UnbelievableAdvert(provider.peer, "of no host")
        begun = trio.current_time()
        await messages.send(wire_pb2.AdvertRequest(), timeout_s=timeout_s)
        reply = await messages.receive(wire_pb2.AdvertReply, timeout_s=timeout_s, max_bytes=MAX_ADVERT_BYTES)
        round_trip_s = trio.current_time() - begun
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await messages.aclose()
    signer, advert = open_advert(reply.envelope)
    wrong = fault(
        advert, signer=signer, peer=provider.peer, now=now(), last_sequence=book.last(provider.peer)
    )
    if wrong is not None:
        raise UnbelievableAdvert(provider.peer, wrong)
    book.saw(provider.peer, advert.sequence)
    return Sighting(
        advert,
        round_trip_s if math.isfinite(round_trip_s) else timeout_s,
        network.relay_of(provider.peer),
    )
