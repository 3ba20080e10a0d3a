"""Receipts, and what engines say of answers that are checked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from edgellm.leasing.lease import Lease, Phase
from edgellm.p2p.envelope import seal
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.identity import Identity
from edgellm.requester import spot_check
from edgellm.requester.choose import Wanted
from edgellm.trust import receipt as receipts
from edgellm.trust.accounts import HostAccounts
from edgellm.trust.book import Picked, picked
from edgellm.trust.compare import Claim
from edgellm.trust.receipt import Receipt, countersign, open_countersigned, open_signed, sign
from edgellm.trust.settle import Account, Settled, settle
from edgellm.trust.verdict import Statement, judge
from edgellm.wire import backend_pb2, wire_pb2
from tests.fuzz.decoder import EARLY, Decoder
from tests.fuzz.peer import NOW, SELF, Bytes, at_once, in_trio, payload, prefixed, wire
from tests.unit.samples import DIGEST, GIB, terms

HOST = Identity.from_seed(b"host" * 8)
POSITIONS = (1, 3, 4, 6)


@cache
def sample_receipt() -> Receipt:
    return Receipt("c" * 32, "l1", HOST.peer, SELF.peer, DIGEST, 0, 8, 3, 90, 60.0, NOW)


def read_receipt(data: bytes) -> None:
    """As a host is asked to sign it: what it signs, it can show."""
    lease = Lease("l1", "c" * 32, SELF.peer, ("0",), GIB, 0, 8, DIGEST, "overlay", Phase.RUNNING, NOW - 60)
    signed = HostAccounts(HOST, now=lambda: NOW).countersign(data, lease)
    found = open_signed(data)
    if signed:
        assert open_countersigned(signed) == found
        assert (found.host, found.lease, found.requester) == (HOST.peer, "l1", SELF.peer)


def read_signed_receipt(data: bytes) -> None:
    envelope = seal(SELF, receipts.REQUESTER_DOMAIN, receipts.PAYLOAD_TYPE, data)
    read_receipt(envelope)
    open_countersigned(countersign(envelope, HOST))


def read_settlement(data: bytes) -> None:
    """What hosts say when they are asked to sign: nothing of it is the requester's error."""
    settled: list[Settled] = []

    async def send(message: wire_pb2.FromRequester) -> None:
        return None

    async def work() -> None:
        account = Account(now=lambda: NOW, settled=settled.extend)
        account.answers[HOST.peer], account.tokens[HOST.peer] = 3, 90
        wish = SimpleNamespace(host=SimpleNamespace(peer=HOST.peer), name="host", terms=terms(digest=DIGEST))
        lease: Any = SimpleNamespace(
            wish=wish,
            messages=MessageStream(Bytes(data)),
            lease="l1",
            signs_receipts=True,
            since=float("inf"),
            send=send,
        )
        await settle(account, [lease], SELF)

    in_trio(work)
    (one,) = settled
    if one.envelope is not None:
        assert open_countersigned(one.envelope) == one.receipt


def read_signed_settlement(data: bytes) -> None:
    """Messages after one that holds a receipt whose content was signed anew by both."""
    envelope = seal(SELF, receipts.REQUESTER_DOMAIN, receipts.PAYLOAD_TYPE, data)
    sealed = wire_pb2.SealedReceipt(envelope=countersign(envelope, HOST))
    read_settlement(prefixed(wire_pb2.FromHost(receipt=sealed)))


def settled_receipt() -> Receipt:
    """As the account in `read_settlement` makes it."""
    return Receipt("c" * 32, "l1", HOST.peer, SELF.peer, DIGEST, 0, 8, 3, 90, 0.0, NOW)


def _settlements() -> list[bytes]:
    envelope = countersign(sign(settled_receipt(), SELF), HOST)
    beat = wire_pb2.FromHost(heartbeat=wire_pb2.Heartbeat(count=1))
    return [
        prefixed(beat, wire_pb2.FromHost(receipt=wire_pb2.SealedReceipt(envelope=envelope))),
        prefixed(beat, wire_pb2.FromHost(receipt=wire_pb2.SealedReceipt())),
        prefixed(wire_pb2.FromHost(ended=wire_pb2.Ended(reason="released", code="released"))),
    ]


# --- checks of answers


def read_picked(data: bytes) -> None:
    answer = backend_pb2.PickedAnswer.FromString(data)
    plan = SimpleNamespace(kv=None, digest=DIGEST, fabric="overlay")
    cluster: Any = SimpleNamespace(plan=plan, stages=SimpleNamespace(request=SimpleNamespace(model="tiny")))
    one = picked(answer, cluster, {HOST.peer: "host"})
    if one is not None and one.logprobs is not None:
        assert len(one.logprobs) == len(one.token_ids)


def read_scores(data: bytes) -> None:
    """A recomputation, and a verdict from it: who says nothing that can be compared is never borne out."""
    reply = backend_pb2.ScoreReply.FromString(data)

    async def score(request: object, *, timeout_s: float) -> backend_pb2.ScoreReply:
        return reply

    @asynccontextmanager
    async def opened(*_: object, **__: object) -> AsyncIterator[Any]:
        stages = SimpleNamespace(stages=[SimpleNamespace(peer=HOST.peer)])
        yield SimpleNamespace(cluster=SimpleNamespace(engine=SimpleNamespace(score=score), stages=stages))

    own = _answer()
    trial = spot_check._Trial(None, own, POSITIONS, Wanted())  # type: ignore[arg-type]
    with patch.object(spot_check, "opened", opened):
        statement = at_once(trial._asked(None, []))  # type: ignore[arg-type]
    assert isinstance(statement, Statement)
    assert own.logprobs is not None
    for logprobs in (None, tuple(own.logprobs[at] for at in POSITIONS)):
        judgement = judge([Statement(frozenset([SELF.peer]), Claim(logprobs)), statement])
        assert not judgement.wrong


def _answer() -> Picked:
    ids = tuple(range(8))
    return Picked(
        "tiny", DIGEST, "overlay", {SELF.peer: "self"}, ids, ids, tuple(-0.1 * each for each in ids)
    )


def _scores() -> list[bytes]:
    one = [backend_pb2.PositionScore(logprob=-0.1 * at, likeliest_logprob=-0.1 * at) for at in POSITIONS]
    return [wire(backend_pb2.ScoreReply(scores=one)), wire(backend_pb2.ScoreReply(scores=one * 3))]


def _picked_answers() -> list[bytes]:
    return [
        wire(backend_pb2.PickedAnswer(prompt_ids=[1, 2], token_ids=[3] * 5, logprobs=[-0.5] * 5)),
        wire(backend_pb2.PickedAnswer(prompt_ids=[1], token_ids=[3] * 5, is_likeliest=True)),
    ]


def read_countersigned_anew(data: bytes) -> None:
    open_countersigned(countersign(data, HOST))


DECODERS = (
    Decoder("receipt", read_receipt, lambda: [sign(sample_receipt(), SELF)], share=0.5),
    Decoder(
        "signed receipt",
        read_signed_receipt,
        lambda: [
            payload(sign(sample_receipt(), SELF), receipts.REQUESTER_DOMAIN, receipts.PAYLOAD_TYPE),
        ],
    ),
    Decoder(
        "countersigned",
        open_countersigned,
        lambda: [countersign(sign(sample_receipt(), SELF), HOST)],
        share=0.5,
    ),
    Decoder("countersigned anew", read_countersigned_anew, lambda: [sign(sample_receipt(), SELF)], share=0.5),
    Decoder("settlements", read_settlement, _settlements, ()),
    Decoder(
        "signed settlements",
        read_signed_settlement,
        lambda: [payload(sign(settled_receipt(), SELF), receipts.REQUESTER_DOMAIN, receipts.PAYLOAD_TYPE)],
        (),
    ),
    Decoder("picked answers", read_picked, _picked_answers, EARLY, 0.5),
    Decoder("scores", read_scores, _scores, EARLY),
)
