"""Private swarms: invites, certificates, revocations, and what is said to prove a membership."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from edgellm.errors import MembershipError, NetworkError
from edgellm.p2p.envelope import seal
from edgellm.p2p.identity import Identity
from edgellm.p2p.mdns import _addresses_of, _entry
from edgellm.swarms import certificate, invite, revocation
from edgellm.swarms import seal as sealing
from edgellm.swarms.attend import Attendance
from edgellm.swarms.certificate import member_of, open_certificate, seal_delegation
from edgellm.swarms.desk import Desk
from edgellm.swarms.exchange import Applicant, Guard
from edgellm.swarms.gate import Gate
from edgellm.swarms.invite import Invite, open_token, token_of
from edgellm.swarms.join import _check
from edgellm.swarms.ledger import Ledger
from edgellm.swarms.revocation import Revocations, open_revocations, seal_revocations
from edgellm.swarms.seal import seal_membership
from edgellm.swarms.store import SwarmRecord
from edgellm.types.member import HOST, REQUESTER
from edgellm.wire import swarm_pb2
from tests.fuzz.decoder import Decoder
from tests.fuzz.peer import NOW, SELF, Bytes, Serving, in_trio, payload, prefixed, wire
from tests.unit.swarms_in_memory import certify

ROOT = Identity.from_seed(b"root" * 8)
OTHER = Identity.from_seed(b"peer" * 8)
SECRET = bytes(range(32))
HANDSHAKE = bytes(32)
_ADDRESS = "/ip4/10.0.0.1/tcp/4001"


@cache
def sample_invite() -> Invite:
    roles = frozenset((HOST, REQUESTER))
    return Invite(ROOT.peer, "lab", "ab" * 8, roles, 3, NOW + 3600, SELF.peer, (_ADDRESS,))


@cache
def sample_token() -> bytes:
    return token_of(ROOT, sample_invite())


@cache
def sample_certificate(subject: str = SELF.peer) -> bytes:
    return certify(ROOT, subject)


@cache
def sample_chain() -> tuple[bytes, bytes]:
    """Of `OTHER`, which asks in the name of `SELF`."""
    return seal_delegation(SELF, ROOT.peer, OTHER.peer, NOW), sample_certificate()


@cache
def sample_revocations() -> bytes:
    return seal_revocations(ROOT, Revocations(2, ((OTHER.peer, NOW), (SELF.peer, NOW))))


def signed_token(body: bytes) -> bytes:
    return wire(swarm_pb2.Token(invite=body, signature=ROOT.sign(invite._DOMAIN + body)))


def read_token(data: bytes) -> None:
    found = open_token(data)
    ledger = Ledger(ROOT.peer).with_invite(sample_invite(), NOW)
    _, given = ledger.redeem(found, OTHER.peer, "carol", "5e" * 16, NOW)
    assert given.roles <= sample_invite().roles


def read_certificate(data: bytes) -> None:
    found = open_certificate(data, ROOT.peer)
    member_of((data,), swarm=ROOT.peer, peer=found.subject, now=NOW)
    _shows((data,), SELF.peer)


def read_delegation(data: bytes) -> None:
    _shows((data, sample_certificate()), OTHER.peer)


def _shows(chain: tuple[bytes, ...], peer: str) -> None:
    """Whoever is let in by it is the member that the swarm has signed."""
    member = member_of(chain, swarm=ROOT.peer, peer=peer, now=NOW)
    assert member.peer == SELF.peer
    assert NOW < member.expires_at <= NOW + certificate.CERTIFICATE_S + certificate.CLOCK_SKEW_S + 1


def read_revocations(data: bytes) -> None:
    gate = sample_gate()
    if gate.learn(data, OTHER.peer):
        assert gate.revocations > 0
        open_revocations(data, ROOT.peer).with_peer(OTHER.peer, NOW)
    gate.doomed()


# --- right after the handshake


def sample_gate() -> Gate:
    return Gate("lab", ROOT.peer, SECRET, SELF, sample_certificate(), now=lambda: NOW)


def sealed_membership(data: bytes, *, from_dialler: bool = True) -> bytes:
    key = sealing._key(SECRET, HANDSHAKE, from_dialler=from_dialler)
    return ChaCha20Poly1305(key).encrypt(sealing._NONCE, data, None)


def read_membership(data: bytes) -> None:
    gate = sample_gate()
    member = gate.admit(OTHER.peer, HANDSHAKE, data, from_dialler=True)
    assert member.peer in (SELF.peer, OTHER.peer)
    gate.behind(frozenset([OTHER.peer]))


@cache
def sample_memberships() -> tuple[swarm_pb2.Membership, ...]:
    return (
        swarm_pb2.Membership(chain=[sample_certificate(OTHER.peer)], revocations=2),
        swarm_pb2.Membership(chain=sample_chain()),
        swarm_pb2.Membership(objection="the membership was revoked"),
    )


class Home:
    """A swarm that is on no disk (`edgellm.swarms.store.SwarmHome`)."""

    directory = Path("/nowhere")

    def __init__(self) -> None:
        self._ledger = Ledger(ROOT.peer).with_invite(sample_invite(), NOW)
        self._ledger, _ = self._ledger.admit(OTHER.peer, "carol", frozenset([HOST]), "5e" * 16, NOW)
        self.kept = b""

    def root(self) -> Identity:
        return ROOT

    def record(self) -> SwarmRecord:
        return SwarmRecord(ROOT.peer, SECRET, SELF.peer, (_ADDRESS,))

    @contextmanager
    def changing_ledger(self) -> Iterator[Ledger]:
        yield self._ledger

    def keep_ledger(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def keep_revocations(self, envelope: bytes) -> None:
        open_revocations(envelope, ROOT.peer)
        self.kept = envelope

    keep_certificate = keep_revocations


class Greets:
    """A connection right after its handshake, whose other side says `data` (`edgellm.p2p.doorkeeper.Greeting`)."""

    handshake = HANDSHAKE
    source = "10.0.0.9"

    def __init__(self, data: bytes, peer: str) -> None:
        self._data = data
        self.peer = peer
        self.sent: list[bytes] = []

    async def send(self, message: bytes) -> None:
        self.sent.append(message)

    async def receive(self, max_bytes: int) -> bytes:
        if len(self._data) > max_bytes:
            raise NetworkError("too long")
        return self._data


def desk() -> Desk:
    return Desk(Home(), lambda: (f"{_ADDRESS}/p2p/{SELF.peer}",), now=lambda: NOW)  # type: ignore[arg-type]


def read_hello(data: bytes) -> None:
    """A stranger hears nothing, and whoever is let in is a member."""
    greeting = Greets(data, Identity.from_seed(b"late" * 8).peer if b"join" in data else OTHER.peer)

    async def meet() -> None:
        guard = Guard(sample_gate(), desk())
        refusal: MembershipError | None = None
        try:
            await guard.inbound(greeting)
        except MembershipError as error:
            refusal = error
        assert (refusal is None) == (guard.member(greeting.peer) is not None)
        if refusal is not None:
            assert refusal.fault not in ("stranger", "objection") or not greeting.sent
            raise refusal

    in_trio(meet)


def read_signed_join(data: bytes) -> None:
    read_hello(wire(swarm_pb2.Hello(join=swarm_pb2.Join(token=signed_token(data), name="join"))))


def read_answer(data: bytes) -> None:
    async def ask() -> None:
        greeting, applicant = Greets(data, OTHER.peer), Applicant(sample_token(), "carol")
        with suppress(MembershipError):
            await applicant.outbound(greeting)
            raise AssertionError("nobody is talked to before the membership is there")
        if applicant.joined is not None:
            # As by a clock of now: the sample is of another time.
            with patch("edgellm.swarms.join.time.time", lambda: NOW), suppress(MembershipError):
                _check(applicant.joined, ROOT.peer, SELF.peer)
        guard = Guard(sample_gate())
        await guard.outbound(greeting)
        assert guard.member(OTHER.peer) is not None

    in_trio(ask)


# --- between members


class Members(Serving):
    """A network in which one other member is connected."""

    def connected_peers(self) -> frozenset[str]:
        return frozenset([OTHER.peer])

    async def drop(self, peer: str) -> None:
        return None


def _attending(stream: Bytes, work: Callable[[Attendance, Any], Coroutine[Any, Any, None]]) -> None:
    async def attend() -> None:
        gate, home = sample_gate(), Home()
        shown = wire(sample_memberships()[0])
        gate.admit(OTHER.peer, HANDSHAKE, sealed_membership(shown), from_dialler=True)
        attendance = Attendance(Members(stream), gate, home, desk())  # type: ignore[arg-type]
        await work(attendance, home)

    in_trio(attend)


def read_question(data: bytes) -> None:
    async def answer(attendance: Attendance, home: Home) -> None:
        await attendance._answer(stream)
        assert not home.kept or home.kept == sample_revocations()

    stream = Bytes(data)
    stream.peer = OTHER.peer
    _attending(stream, answer)


def read_revocations_question(data: bytes) -> None:
    """A list of revocations, signed anew, as a member tells it another."""
    body = seal(ROOT, revocation._DOMAIN, revocation._TYPE, data)
    question = swarm_pb2.Question(revocations=body)

    async def answer(attendance: Attendance, home: Home) -> None:
        await attendance._reply(question, OTHER.peer)

    _attending(Bytes(b""), answer)


def read_renewal(data: bytes) -> None:
    async def renew(attendance: Attendance, home: Home) -> None:
        attendance._desk = None
        await attendance._renew()
        attendance._gate.check_own()

    _attending(Bytes(data), renew)


def read_beacon(data: bytes) -> None:
    _addresses_of(SimpleNamespace(text=data), SECRET)


def read_sealed_beacon(data: bytes) -> None:
    entry = b"sealed=" + bytes(12) + ChaCha20Poly1305(SECRET).encrypt(bytes(12), data[:200], None)
    read_beacon(bytes([len(entry)]) + entry)


def _beacons() -> list[bytes]:
    entry = _entry(f"{_ADDRESS}/p2p/{SELF.peer}", SECRET)
    return [bytes([len(entry)]) + entry]


def _hellos() -> list[bytes]:
    return [
        wire(swarm_pb2.Hello(join=swarm_pb2.Join(token=sample_token(), name="join"))),
        *(wire(swarm_pb2.Hello(sealed=sealed_membership(wire(each)))) for each in sample_memberships()),
    ]


def _answers() -> list[bytes]:
    joined = swarm_pb2.Joined(
        certificate=sample_certificate(), secret=SECRET, bootstrap=[f"{_ADDRESS}/p2p/{SELF.peer}"]
    )
    said = [sealed_membership(wire(each), from_dialler=False) for each in sample_memberships()]
    return [
        wire(swarm_pb2.Answer(joined=joined)),
        wire(swarm_pb2.Answer(refused="the invite has expired")),
        *(wire(swarm_pb2.Answer(sealed=each)) for each in said),
    ]


def _questions() -> list[bytes]:
    present = swarm_pb2.Present(chain=[sample_certificate(OTHER.peer)])
    return [
        prefixed(swarm_pb2.Question(revocations=sample_revocations())),
        prefixed(swarm_pb2.Question(present=present)),
        prefixed(swarm_pb2.Question(renew=swarm_pb2.Renew())),
    ]


def _replies() -> list[bytes]:
    later = certify(ROOT, SELF.peer, issued_at=NOW + 30)
    return [
        prefixed(swarm_pb2.Reply(certificate=later)),
        prefixed(swarm_pb2.Reply(done=swarm_pb2.Done())),
        prefixed(swarm_pb2.Reply(refused="certificates are not renewed here")),
    ]


def _body(token: bytes) -> bytes:
    return bytes(swarm_pb2.Token.FromString(token).invite)


DECODERS = (
    Decoder(
        "invite text",
        lambda data: open_token(invite.read(data.decode("utf-8", "replace"))),
        lambda: [invite.written(sample_token()).encode()],
        share=0.5,
    ),
    Decoder("invite", read_token, lambda: [sample_token()], share=0.5),
    Decoder("signed invite", lambda data: read_token(signed_token(data)), lambda: [_body(sample_token())]),
    Decoder("certificate", read_certificate, lambda: [sample_certificate()], share=0.5),
    Decoder(
        "signed certificate",
        lambda data: read_certificate(seal(ROOT, *certificate._CERTIFICATE, data)),
        lambda: [payload(sample_certificate(), *certificate._CERTIFICATE)],
    ),
    Decoder("delegation", read_delegation, lambda: [sample_chain()[0]], share=0.5),
    Decoder(
        "signed delegation",
        lambda data: read_delegation(seal(SELF, *certificate._DELEGATION, data)),
        lambda: [payload(sample_chain()[0], *certificate._DELEGATION)],
    ),
    Decoder("revocations", read_revocations, lambda: [sample_revocations()], share=0.5),
    Decoder(
        "signed revocations",
        lambda data: read_revocations(seal(ROOT, revocation._DOMAIN, revocation._TYPE, data)),
        lambda: [payload(sample_revocations(), revocation._DOMAIN, revocation._TYPE)],
    ),
    Decoder(
        "membership",
        read_membership,
        lambda: [
            seal_membership(SECRET, HANDSHAKE, each, from_dialler=True) for each in sample_memberships()
        ],
        share=0.5,
    ),
    Decoder(
        "sealed membership",
        lambda data: read_membership(sealed_membership(data)),
        lambda: [wire(each) for each in sample_memberships()],
    ),
    Decoder("greetings", read_hello, _hellos),
    Decoder("signed joins", read_signed_join, lambda: [_body(sample_token())]),
    Decoder("answers to greetings", read_answer, _answers),
    Decoder("swarm questions", read_question, _questions),
    Decoder(
        "swarm news, signed",
        read_revocations_question,
        lambda: [payload(sample_revocations(), revocation._DOMAIN, revocation._TYPE)],
    ),
    Decoder("swarm replies", read_renewal, _replies),
    Decoder("beacon", read_beacon, _beacons, (), 0.5),
    Decoder("sealed beacon", read_sealed_beacon, lambda: [f"{_ADDRESS}/p2p/{SELF.peer}".encode()], (), 0.5),
)
