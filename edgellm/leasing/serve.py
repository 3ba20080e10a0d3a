"""A host's side of a lease: grant, wait for the plan, run it, and end it whatever happens."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog
import trio

from edgellm.errors import EdgeError, NetworkError, ProtocolViolation
from edgellm.leasing import COMMIT_S, HEARTBEAT_S, PROTOCOL, SILENCE_S
from edgellm.leasing.accept import objection
from edgellm.leasing.account import NOTICE_S, Account
from edgellm.leasing.codec import MAX_PLAN_BYTES, open_plan
from edgellm.leasing.lease import Book, Lease, Refusal
from edgellm.leasing.patience import Patience
from edgellm.leasing.policy import ANYONE, Policy
from edgellm.leasing.terms import Terms, endpoints_to_wire, terms_from_wire
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Network, Stream
from edgellm.trust.accounts import HostAccounts
from edgellm.types.plan import ClusterPlan, Endpoint
from edgellm.types.text import one_line
from edgellm.wire import wire_pb2

log = structlog.get_logger(__name__)

FAREWELL_S = 1.0
"""How long the last message to a requester may take."""


@dataclass(frozen=True, slots=True)
class Doorway:
    """What other members need to reach a lease's cell: made when the lease is granted."""

    certificate: bytes
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class CellNews:
    phase: str
    detail: str = ""


class RunningCell(Protocol):
    def news(self) -> AsyncIterator[CellNews]:
        """What happens in the cell, as it happens; ends when the cell is gone."""

    async def wait(self) -> str:
        """Returns why the cell is gone, once it is."""

    async def settle(self) -> None:
        """Returns when it has told what it computed; to be called before a cell that lives is ended."""

    async def amend(self, plan: ClusterPlan) -> None:
        """Goes by another plan of the same cluster from now on. Raises CellError."""


class Runner(Protocol):
    """The effects behind a lease: `edgellm.hosting.runner` really has them, tests need not."""

    def prepare(self, lease: Lease) -> AbstractContextManager[Doorway]:
        """Opens the doorway; it closes with the context."""

    def run(
        self, lease: Lease, plan: ClusterPlan, doorway: Doorway
    ) -> AbstractAsyncContextManager[RunningCell]:
        """Makes the cell and starts the member in it; all of it is gone when the context ends."""


@dataclass(frozen=True, slots=True)
class _End:
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Deadline:
    at: float
    """By trio's clock."""
    reason: str


@dataclass
class _Conversation:
    """One lease stream. The first call of `end` decides; every task of the lease is cancelled by it."""

    messages: MessageStream
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    sending: trio.Lock = field(default_factory=trio.Lock)
    plan: ClusterPlan | None = None
    """The latest that was accepted."""
    cell: RunningCell | None = None
    committed: trio.Event = field(default_factory=trio.Event)
    ended: _End | None = None

    def end(self, code: str, reason: str) -> None:
        if self.ended is None:
            self.ended = _End(code, reason)
            self.scope.cancel()

    async def send(self, message: wire_pb2.FromHost) -> None:
        async with self.sending:
            await self.messages.send(message, timeout_s=SILENCE_S)


class LeaseServer:
    """Serves `/edgellm/lease/1`: owns the host's book, and calls `changed` whenever it differs."""

    def __init__(
        self,
        network: Network,
        book: Book,
        runner: Runner,
        *,
        now: Callable[[], float],
        changed: Callable[[Book], None] = lambda book: None,
        accounts: HostAccounts | None = None,
        policy: Policy = ANYONE,
        account: Account | None = None,
        origin_of: Callable[[str], str] = lambda peer: peer,
    ) -> None:
        """`account`: what the host may still lend; None: as much as it likes. `origin_of`: where a peer connects from, as
        peer ids cost nothing.
        """
        self._network = network
        self._runner = runner
        self._now = now
        self._changed = changed
        self._deadline: _Deadline | None = None
        self._deadline_set = trio.Event()
        self._accounts = accounts or HostAccounts(network.identity, now=now)
        self._policy = policy
        self.account = account
        self._origin_of = origin_of
        self._patience = Patience()
        self._idle = trio.Condition()
        self.book = book

    @property
    def peer(self) -> str:
        return self._network.peer

    def attach(self) -> None:
        self._network.serve(PROTOCOL, self._serve)

    async def drain(self, grace_s: float, reason: str = "the host is shutting down") -> None:
        """As `pause`; returns when no lease is left, soon after `grace_s` at the latest."""
        self.pause(grace_s, reason)
        await self.idle()

    def pause(self, grace_s: float, reason: str) -> None:
        """Takes no new leases, and tells the holders of running ones that these end in `grace_s`.

        Once more: with another deadline, also for those that were told before.
        """
        self._update(self.book.drain())
        self._set_deadline(_Deadline(trio.current_time() + grace_s, reason))

    def resume(self) -> None:
        """Takes leases again. Those that were told that they end, and have not yet, go on."""
        self._set_deadline(None)
        self._update(self.book.resume())

    def lend_until(self, unix_s: float | None) -> None:
        """What requesters are told beforehand; it ends no lease by itself."""
        self._update(replace(self.book, lends_until=unix_s))

    @property
    def ends_in_s(self) -> float | None:
        """Until running leases are ended; None while they are not told to end."""
        return None if self._deadline is None else max(0.0, self._deadline.at - trio.current_time())

    async def idle(self) -> None:
        """Returns when no lease is left."""
        async with self._idle:
            while self.book.leases:
                await self._idle.wait()

    def _set_deadline(self, deadline: _Deadline | None) -> None:
        self._deadline = deadline
        self._deadline_set.set()
        self._deadline_set = trio.Event()

    def _update(self, book: Book) -> None:
        self.book = book
        self._changed(book)

    async def _serve(self, stream: Stream) -> None:
        messages = MessageStream(stream, max_bytes=MAX_PLAN_BYTES)
        first = await messages.receive(wire_pb2.FromRequester, timeout_s=SILENCE_S)
        if first.WhichOneof("message") != "reserve":
            raise ProtocolViolation(f"peer {stream.peer} began a lease without reserving")
        terms = terms_from_wire(first.reserve)
        origin, begun = self._origin_of(stream.peer), trio.current_time()
        granted = self._granted(terms, stream.peer, origin)
        if isinstance(granted, Refusal):
            log.info("lease refused", requester=stream.peer, code=granted.code, reason=granted.reason)
            refused = wire_pb2.Refused(reason=granted.reason, code=granted.code)
            await messages.send(wire_pb2.FromHost(refused=refused))
            return
        book, lease = granted
        self._update(book)
        log.info("lease granted", lease=lease.id, requester=stream.peer, devices=lease.devices)
        conversation = _Conversation(messages)
        try:
            with self._charged(lease), self._runner.prepare(lease) as doorway:
                await self._converse(conversation, lease, doorway)
        finally:
            self._update(self.book.release(lease.id))
            if conversation.plan is None:
                self._patience.wasted(origin, trio.current_time() - begun, trio.current_time())
            end = conversation.ended or _End("invalid", "the host failed")
            log.info("lease ended", lease=lease.id, code=end.code, reason=end.reason)
            self._accounts.ended(lease, end.code)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + FAREWELL_S):
                async with self._idle:
                    self._idle.notify_all()
                try:
                    ended = wire_pb2.Ended(reason=end.reason, code=end.code)
                    await messages.send(wire_pb2.FromHost(ended=ended))
                except NetworkError:
                    log.debug("the requester is gone", lease=lease.id)

    def _granted(self, terms: Terms, requester: str, origin: str) -> tuple[Book, Lease] | Refusal:
        against = self._policy.objection(requester, self._network.member(requester))
        if against is not None:
            return Refusal("policy", against)
        if (refusal := self._refusal(requester, origin)) is not None:
            return refusal
        return self.book.reserve(terms, lease=secrets.token_hex(8), requester=requester, now=self._now())

    async def _converse(self, conversation: _Conversation, lease: Lease, doorway: Doorway) -> None:
        granted = wire_pb2.Granted(
            lease=lease.id,
            expires_unix_ms=round((self._now() + SILENCE_S) * 1000),
            devices=lease.devices,
            overlay_certificate=doorway.certificate,
            overlay_endpoints=endpoints_to_wire(doorway.endpoints),
            lends_until_unix_ms=round((self.book.lends_until or 0) * 1000),
            signs_receipts=True,
        )
        await conversation.send(wire_pb2.FromHost(granted=granted))
        with conversation.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, conversation, lease, doorway)
                nursery.start_soon(self._beat, conversation)
                nursery.start_soon(self._keep_deadline, conversation)
                nursery.start_soon(self._end_when_used_up, conversation, lease)
                nursery.start_soon(self._run, conversation, lease, doorway)

    async def _listen(self, conversation: _Conversation, lease: Lease, doorway: Doorway) -> None:
        while True:
            try:
                message = await conversation.messages.receive(wire_pb2.FromRequester, timeout_s=SILENCE_S)
            except NetworkError as error:
                conversation.end("expired", f"the requester fell silent: {error}")
                return
            match message.WhichOneof("message"):
                case "heartbeat":
                    continue
                case "commit":
                    await self._commit(conversation, lease, doorway, message.commit.plan_envelope)
                case "receipt" if conversation.plan is not None:
                    await self._sign(conversation, lease, message.receipt.envelope)
                case "release":
                    if conversation.cell is not None:
                        await conversation.cell.settle()
                    conversation.end("released", one_line(message.release.reason, 200))
                    return
                case _:
                    conversation.end("invalid", "a message that has no place here")
                    return

    async def _sign(self, conversation: _Conversation, lease: Lease, envelope: bytes) -> None:
        signed = wire_pb2.SealedReceipt(envelope=self._accounts.countersign(envelope, lease))
        try:
            await conversation.send(wire_pb2.FromHost(receipt=signed))
        except NetworkError as error:
            conversation.end("expired", f"the requester does not listen: {error}")

    async def _commit(
        self, conversation: _Conversation, lease: Lease, doorway: Doorway, envelope: bytes
    ) -> None:
        try:
            signer, plan = open_plan(envelope)
        except ProtocolViolation as error:
            conversation.end("invalid", str(error))
            return
        against = objection(
            plan,
            signer=signer,
            peer=self._network.peer,
            lease=lease,
            certificate=doorway.certificate,
            now=self._now(),
            before=conversation.plan,
        )
        if against is not None:
            conversation.end("invalid", f"the plan {against}")
            return
        conversation.plan = plan
        if not conversation.committed.is_set():
            self._update(self.book.run(lease.id))
            conversation.committed.set()
        elif conversation.cell is not None:
            await self._amend(conversation, conversation.cell)

    async def _amend(self, conversation: _Conversation, cell: RunningCell) -> None:
        assert conversation.plan is not None
        try:
            await cell.amend(conversation.plan)
        except EdgeError as error:
            conversation.end("cell-died", str(error))

    async def _beat(self, conversation: _Conversation) -> None:
        count = 0
        while True:
            count += 1
            try:
                await conversation.send(wire_pb2.FromHost(heartbeat=wire_pb2.Heartbeat(count=count)))
            except NetworkError as error:
                conversation.end("expired", f"the requester does not listen: {error}")
                return
            await trio.sleep(HEARTBEAT_S)

    def _refusal(self, requester: str, origin: str) -> Refusal | None:
        """Why nothing is lent to this requester, whatever it asks for."""
        if self.account is not None and (refusal := self.account.refusal(requester)) is not None:
            return refusal
        return self._patience.refusal(origin, trio.current_time())

    def _charged(self, lease: Lease) -> AbstractContextManager[None]:
        return nullcontext() if self.account is None else self.account.hold(lease)

    async def _end_when_used_up(self, conversation: _Conversation, lease: Lease) -> None:
        """Tells the requester to go elsewhere when nothing is left for its lease, and ends that `NOTICE_S` later."""
        if self.account is None:
            return
        why = await self.account.used_up(lease)
        log.info("a lease is drained", lease=lease.id, reason=why)
        deadline = wire_pb2.Draining(deadline_unix_ms=round((self._now() + NOTICE_S) * 1000))
        try:
            await conversation.send(wire_pb2.FromHost(draining=deadline))
        except NetworkError as error:
            conversation.end("expired", f"the requester does not listen: {error}")
            return
        await trio.sleep(NOTICE_S)
        conversation.end("drained", why)

    async def _keep_deadline(self, conversation: _Conversation) -> None:
        """Tells the requester each deadline as it is set, or taken back, and ends the lease when one has come."""
        is_told = False
        while True:
            deadline, changed = self._deadline, self._deadline_set
            if deadline is None and not is_told:
                await changed.wait()
                continue
            is_told = deadline is not None
            draining = wire_pb2.Draining()
            if deadline is not None:
                left_s = max(0.0, deadline.at - trio.current_time())
                draining.deadline_unix_ms = round((self._now() + left_s) * 1000)
            try:
                # The one who is to end has no say in when.
                with trio.move_on_at(math.inf if deadline is None else deadline.at):
                    await conversation.send(wire_pb2.FromHost(draining=draining))
            except NetworkError as error:
                conversation.end("expired", f"the requester does not listen: {error}")
                return
            if deadline is None:
                continue
            with trio.move_on_at(deadline.at):
                await changed.wait()
                continue
            conversation.end("drained", deadline.reason)
            return

    async def _run(self, conversation: _Conversation, lease: Lease, doorway: Doorway) -> None:
        with trio.move_on_after(COMMIT_S):
            await conversation.committed.wait()
        if conversation.plan is None:
            conversation.end("expired", f"no plan came within {COMMIT_S:g} s")
            return
        begun_by = conversation.plan
        try:
            async with self._runner.run(lease, begun_by, doorway) as cell:
                conversation.cell = cell
                if conversation.plan is not begun_by:
                    # It came while the cell was made.
                    await self._amend(conversation, cell)
                async for news in cell.news():
                    event = wire_pb2.LeaseEvent(phase=news.phase[:64], detail=news.detail[:500])
                    await conversation.send(wire_pb2.FromHost(event=event))
                conversation.end("cell-died", await cell.wait())
        except NetworkError as error:
            conversation.end("expired", f"the requester does not listen: {error}")
        except EdgeError as error:
            conversation.end("cell-died", f"{error}" + (f" ({error.remedy})" if error.remedy else ""))
