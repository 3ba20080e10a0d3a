"""The one message each way right after the handshake: members show their certificates, somebody with an invite redeems it.

A stranger hears nothing, and is cut off within `HELLO_S`: the first message of one who means it is on the wire with the end of
the handshake, however long the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio
from google.protobuf.message import DecodeError

from edgellm.errors import MembershipError, NetworkError, unwrapped
from edgellm.p2p.doorkeeper import Greeting
from edgellm.swarms.desk import Desk
from edgellm.swarms.gate import Gate
from edgellm.swarms.seal import MAX_SEALED_BYTES
from edgellm.types.member import Member
from edgellm.wire import swarm_pb2

HELLO_S = 0.9
LATE_S = 0.1
ANSWER_S = 5.0
"""How long the way there and back and the other side's work may take."""
MAX_GREETING_BYTES = MAX_SEALED_BYTES + 1024


class Guard:
    """The doorkeeper of a node in a private swarm (`edgellm.p2p.doorkeeper.Doorkeeper`)."""

    def __init__(self, gate: Gate, desk: Desk | None = None) -> None:
        """`desk`: where invites are redeemed; None: not here."""
        self.gate = gate
        self._desk = desk

    @property
    def beacon_key(self) -> bytes:
        return self.gate.beacon_key

    def member(self, peer: str) -> Member | None:
        return self.gate.member(peer)

    async def inbound(self, greeting: Greeting) -> None:
        """Raises EdgeError for a peer that is not let in, and after a new member got its certificate: it is to come again."""
        hello = await _first_words(greeting)
        with _within(ANSWER_S):
            if hello.WhichOneof("hello") == "join" and self._desk is not None:
                answer = await self._desk.answer(hello.join, greeting.peer, greeting.source)
                await greeting.send(answer.SerializeToString())
                raise MembershipError("an invite was redeemed", fault="joined")
            try:
                self.gate.admit(greeting.peer, greeting.handshake, hello.sealed, from_dialler=True)
            except MembershipError as error:
                if error.fault not in ("stranger", "objection"):
                    why = self.gate.objection(greeting.handshake, str(error), from_dialler=False)
                    await greeting.send(swarm_pb2.Answer(sealed=why).SerializeToString())
                raise
            sealed = self.gate.greeting(greeting.handshake, from_dialler=False)
            await greeting.send(swarm_pb2.Answer(sealed=sealed).SerializeToString())

    async def outbound(self, greeting: Greeting) -> None:
        """Raises MembershipError or NetworkError for a peer that is not let in, or does not let this one in."""
        with _within(ANSWER_S):
            sealed = self.gate.greeting(greeting.handshake, from_dialler=True)
            await greeting.send(swarm_pb2.Hello(sealed=sealed).SerializeToString())
            try:
                answer = _answer(await greeting.receive(MAX_GREETING_BYTES))
                self.gate.admit(greeting.peer, greeting.handshake, answer.sealed, from_dialler=False)
            except MembershipError as error:
                if error.fault != "stranger":
                    raise
                raise _not_a_member(self.gate.name) from error
            except NetworkError as error:
                raise _not_a_member(self.gate.name) from error


class Applicant:
    """Stands in for a doorkeeper in a node that has an invite and is no member yet: it redeems it, and talks to nobody."""

    beacon_key = bytes(32)

    def __init__(self, token: bytes, name: str) -> None:
        self._hello = swarm_pb2.Hello(join=swarm_pb2.Join(token=token, name=name))
        self.joined: swarm_pb2.Joined | None = None
        self.refused = ""

    def member(self, peer: str) -> Member | None:
        return None

    async def inbound(self, greeting: Greeting) -> None:
        raise MembershipError("this node is no member yet", fault="stranger")

    async def outbound(self, greeting: Greeting) -> None:
        """Raises EdgeError always; whether it became a member is in `joined` and `refused`."""
        if self.joined is None and not self.refused:
            with _within(2 * ANSWER_S):
                await greeting.send(self._hello.SerializeToString())
                answer = _answer(await greeting.receive(MAX_GREETING_BYTES))
            if answer.WhichOneof("answer") == "joined":
                self.joined = answer.joined
            elif answer.refused:
                self.refused = answer.refused[:300]
        raise MembershipError("the invite was presented", fault="joined")


async def _first_words(greeting: Greeting) -> swarm_pb2.Hello:
    """What a peer that has connected says. Raises EdgeError where it says nothing, or no greeting, in time."""
    hello: swarm_pb2.Hello | None = None
    with unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_give_up, nursery.cancel_scope)
            hello = _hello(await greeting.receive(MAX_GREETING_BYTES))
            nursery.cancel_scope.cancel()
    if hello is None:
        raise MembershipError("a stranger said nothing", fault="stranger")
    return hello


async def _give_up(scope: trio.CancelScope) -> None:
    deadline = trio.current_time() + HELLO_S
    await trio.sleep_until(deadline)
    if trio.current_time() > deadline + LATE_S:
        # This process was held up itself, and what was said meanwhile is not read yet.
        await trio.sleep(LATE_S)
    scope.cancel()


def _hello(data: bytes) -> swarm_pb2.Hello:
    try:
        return swarm_pb2.Hello.FromString(data)
    except DecodeError as error:
        raise MembershipError("what a stranger said is no greeting", fault="stranger") from error


def _answer(data: bytes) -> swarm_pb2.Answer:
    try:
        return swarm_pb2.Answer.FromString(data)
    except DecodeError as error:
        raise MembershipError("what it answered is no greeting", fault="stranger") from error


def _not_a_member(swarm: str) -> MembershipError:
    return MembershipError(
        f"it is no member of {swarm}, or does not take this machine for one", fault="stranger"
    )


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises NetworkError where the body takes longer."""
    with trio.move_on_after(seconds) as deadline:
        yield
    if deadline.cancelled_caught:
        raise NetworkError(f"it did not greet within {seconds:g} s")
