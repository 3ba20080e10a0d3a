"""A requester's side of receipts, at the end of its leases. A host that does not sign delays nothing for long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog
import trio

from edgellm.errors import NetworkError, ProtocolViolation
from edgellm.leasing.terms import Terms
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import PeerAddress
from edgellm.trust.receipt import Receipt, open_countersigned, sign
from edgellm.wire import wire_pb2

log = structlog.get_logger(__name__)

SETTLE_S = 1.0
"""Until all hosts have signed, or will not."""
_MESSAGES = 64
"""That may come before the host's signature: heartbeats and news on their way."""


class Wish(Protocol):
    """The part of `edgellm.leasing.hold.Wish` that is of use here."""

    @property
    def host(self) -> PeerAddress: ...
    @property
    def name(self) -> str: ...
    @property
    def terms(self) -> Terms: ...


class Held(Protocol):
    """The part of `edgellm.leasing.hold.HeldLease` that is of use here."""

    @property
    def wish(self) -> Wish: ...
    @property
    def messages(self) -> MessageStream: ...
    @property
    def lease(self) -> str: ...
    @property
    def signs_receipts(self) -> bool: ...
    @property
    def since(self) -> float: ...
    async def send(self, message: wire_pb2.FromRequester) -> None: ...


@dataclass(frozen=True, slots=True)
class Settled:
    """One lease at its end."""

    receipt: Receipt
    name: str
    envelope: bytes | None
    """Signed by both; None: not by the host."""
    was_asked: bool
    """Whether it was asked to sign."""


@dataclass
class Account:
    """Of the leases of one cluster, kept by whoever uses it. By itself it keeps nothing."""

    now: Callable[[], float] | None = None
    """None: nobody wants receipts."""
    answers: Counter[str] = field(default_factory=Counter)
    """By the peers that had a part in them."""
    tokens: Counter[str] = field(default_factory=Counter)
    closed: set[str] = field(default_factory=set)
    """Leases that are accounted for."""
    settled: Callable[[Sequence[Settled]], None] = lambda settled: None
    lost: Callable[[str, str, str], None] = lambda peer, name, reason: None
    """A host was lost that did not say that it would leave: peer, name and why."""

    def close(self, lease: Held, requester: str) -> None:
        """A lease is over; if it is not settled, nobody has the time to ask for a signature."""
        if self.now is not None and lease.lease not in self.closed:
            self.settled([Settled(self.receipt(lease, requester), lease.wish.name, None, was_asked=False)])

    def receipt(self, lease: Held, requester: str) -> Receipt:
        """What a lease that ends now has been. What it served is accounted for then."""
        assert self.now is not None
        terms, peer = lease.wish.terms, lease.wish.host.peer
        self.closed.add(lease.lease)
        return Receipt(
            cluster=terms.cluster,
            lease=lease.lease,
            host=peer,
            requester=requester,
            digest=terms.digest,
            first_layer=terms.first_layer,
            end_layer=terms.end_layer,
            answers=self.answers.pop(peer, 0),
            tokens=self.tokens.pop(peer, 0),
            seconds=max(0.0, trio.current_time() - lease.since),
            ended_at=self.now(),
        )


async def settle(account: Account, leases: Sequence[Held], identity: Identity) -> None:
    """Has the hosts sign what they did, before they are released; nobody else may listen to the leases' streams any more."""
    if account.now is None or not leases:
        return
    results = {
        index: Settled(
            account.receipt(lease, identity.peer), lease.wish.name, None, was_asked=lease.signs_receipts
        )
        for index, lease in enumerate(leases)
    }

    async def ask(index: int, lease: Held) -> None:
        try:
            envelope = await _countersigned(results[index].receipt, lease, identity)
            results[index] = replace(results[index], envelope=envelope)
        except NetworkError as refusal:
            log.info("a host signed no receipt", host=lease.wish.name, why=str(refusal))

    with trio.CancelScope(shield=True, deadline=trio.current_time() + SETTLE_S):
        # Whoever listened has been cancelled, and notices that now.
        await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            for index, lease in enumerate(leases):
                if results[index].was_asked:
                    nursery.start_soon(ask, index, lease)
    account.settled([results[index] for index in range(len(leases))])


async def _countersigned(receipt: Receipt, lease: Held, identity: Identity) -> bytes:
    """Signed by both. Raises NetworkError where the host does not, or signs something else."""
    sealed = wire_pb2.SealedReceipt(envelope=sign(receipt, identity))
    await lease.send(wire_pb2.FromRequester(receipt=sealed))
    for _ in range(_MESSAGES):
        message = await lease.messages.receive(wire_pb2.FromHost, timeout_s=SETTLE_S)
        if message.WhichOneof("message") == "receipt":
            envelope = message.receipt.envelope
            if open_countersigned(envelope) != _as_sent(receipt):
                raise ProtocolViolation("it signed another receipt")
            return envelope
        if message.WhichOneof("message") == "ended":
            break
    raise ProtocolViolation("it did not answer")


def _as_sent(receipt: Receipt) -> Receipt:
    """The receipt as it is after it has travelled: instants are whole milliseconds there."""
    return replace(receipt, ended_at=round(receipt.ended_at * 1000) / 1000)
