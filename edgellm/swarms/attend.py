"""What members tell each other while they are connected: who was revoked, and that a certificate is a new one.

`Attendance` also looks at the swarm's files once a second, so that what one process of this machine learns (or the maker says
on the command line) holds in all of them, and ends connections that must end.
"""

from __future__ import annotations

import structlog
import trio

from edgellm.errors import EdgeError, MembershipError, NetworkError
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Network, Stream
from edgellm.swarms.desk import Desk
from edgellm.swarms.gate import Gate
from edgellm.swarms.revocation import MAX_LIST_BYTES
from edgellm.swarms.store import SwarmHome
from edgellm.wire import swarm_pb2

log = structlog.get_logger(__name__)

PROTOCOL = "/edgellm/swarm/1"
LOOK_INTERVAL_S = 1.0
RENEW_INTERVAL_S = 600.0
TELL_TIMEOUT_S = 5.0
MAX_TOLD_AT_ONCE = 64
MAX_MESSAGE_BYTES = MAX_LIST_BYTES + 4096


class Attendance:
    """One process's part in keeping its swarm to its members."""

    def __init__(self, network: Network, gate: Gate, home: SwarmHome, desk: Desk | None = None) -> None:
        self._network = network
        self._gate = gate
        self._home = home
        self._desk = desk
        self._slots = trio.CapacityLimiter(MAX_TOLD_AT_ONCE)
        self._renew_at = trio.current_time()
        self._news = trio.Event()

    async def run(self) -> None:
        """Never returns. Raises MembershipError when this machine is a member no longer."""
        self._network.serve(PROTOCOL, self._answer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._spread)
            while True:
                await self._look_at_files()
                await self._end_connections()
                self._gate.check_own()
                self._gate.forget_all_but(self._network.connected_peers())
                await trio.sleep(LOOK_INTERVAL_S)

    async def _spread(self) -> None:
        """By itself: a member that does not answer is not to hold up what protects from others."""
        while True:
            self._news = trio.Event()
            await self._tell_revocations()
            if trio.current_time() >= self._renew_at and self._gate.is_renewal_due():
                self._renew_at = trio.current_time() + RENEW_INTERVAL_S
                await self._renew()
            with trio.move_on_after(LOOK_INTERVAL_S):
                await self._news.wait()

    async def _look_at_files(self) -> None:
        try:
            envelope, certificate = await trio.to_thread.run_sync(self._read_files)
            if envelope and envelope != self._gate.revocations_envelope and self._gate.learn(envelope):
                self._news.set()
            self._gate.renewed(certificate)
        except (EdgeError, OSError) as error:
            if not self._home.directory.exists():
                raise MembershipError(
                    f"this machine has left {self._gate.name}",
                    remedy="join it again, or choose another swarm",
                ) from error
            log.warning("the swarm's files cannot be read", swarm=self._gate.name, error=str(error))

    def _read_files(self) -> tuple[bytes, bytes]:
        return self._home.revocations_envelope(), self._home.certificate_envelope()

    async def _end_connections(self) -> None:
        for peer in self._gate.doomed(self._network.connected_peers()):
            log.info("a peer is a member no longer", peer=peer)
            await self._network.drop(peer)
            self._gate.forget(peer)

    async def _tell_revocations(self) -> None:
        question = swarm_pb2.Question(revocations=self._gate.revocations_envelope)
        sequence = self._gate.revocations

        async def tell(peer: str) -> None:
            async with self._slots:
                if await self._ask(peer, question) is not None:
                    self._gate.told(peer, sequence)

        async with trio.open_nursery() as nursery:
            for peer in self._gate.behind(self._network.connected_peers()):
                nursery.start_soon(tell, peer)

    async def _renew(self) -> None:
        """A new certificate from the issuer, shown to everybody connected then. Tried again later when it cannot be had."""
        record = self._home.record()
        try:
            if self._desk is not None:
                envelope = await self._desk.renew(self._gate.certificate.subject)
            else:
                question = swarm_pb2.Question(renew=swarm_pb2.Renew())
                answer = await self._ask(record.issuer, question, record.issuer_addresses)
                envelope = answer.certificate if answer is not None else b""
            if not envelope:
                log.warning("the certificate could not be renewed", swarm=self._gate.name)
                return
            self._gate.renewed(envelope)
            await trio.to_thread.run_sync(self._home.keep_certificate, envelope)
        except (MembershipError, OSError) as error:
            log.warning("the certificate could not be renewed", swarm=self._gate.name, error=str(error))
            return
        present = swarm_pb2.Question(present=swarm_pb2.Present(chain=self._gate.chain()))
        async with trio.open_nursery() as nursery:
            for peer in self._gate.known() & self._network.connected_peers():
                nursery.start_soon(self._ask, peer, present)

    async def _ask(
        self, peer: str, question: swarm_pb2.Question, addresses: tuple[str, ...] = ()
    ) -> swarm_pb2.Reply | None:
        """None where there is no answer."""
        try:
            stream = await self._network.open_stream(
                peer, PROTOCOL, addresses=addresses, timeout_s=TELL_TIMEOUT_S
            )
            messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
            try:
                await messages.send(question, timeout_s=TELL_TIMEOUT_S)
                return await messages.receive(swarm_pb2.Reply, timeout_s=TELL_TIMEOUT_S, max_bytes=8192)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await messages.aclose()
        except NetworkError as error:
            log.debug("a member did not answer", peer=peer, error=str(error))
            return None

    async def _answer(self, stream: Stream) -> None:
        messages = MessageStream(stream, max_bytes=MAX_MESSAGE_BYTES)
        question = await messages.receive(swarm_pb2.Question, timeout_s=TELL_TIMEOUT_S)
        try:
            reply = await self._reply(question, stream.peer)
        except MembershipError as error:
            reply = swarm_pb2.Reply(refused=str(error)[:200])
        await messages.send(reply, timeout_s=TELL_TIMEOUT_S)

    async def _reply(self, question: swarm_pb2.Question, peer: str) -> swarm_pb2.Reply:
        match question.WhichOneof("question"):
            case "revocations":
                if self._gate.learn(question.revocations, peer):
                    await trio.to_thread.run_sync(self._home.keep_revocations, question.revocations)
                    self._news.set()
                    await self._end_connections()
            case "present":
                self._gate.present(peer, tuple(question.present.chain))
            case "renew":
                member = self._gate.member(peer)
                if self._desk is None or member is None:
                    raise MembershipError("certificates are not renewed here")
                return swarm_pb2.Reply(certificate=await self._desk.renew(member.peer))
            case _:
                raise MembershipError("a question that there is not")
        return swarm_pb2.Reply(done=swarm_pb2.Done())
