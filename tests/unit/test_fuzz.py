"""The short form of `make fuzz`: every decoder takes some hundred damaged inputs, and what they are made of."""

from __future__ import annotations

import random
import struct

import pytest

from edgellm.errors import ProtocolViolation
from tests.fuzz.decoder import Decoder, run_one
from tests.fuzz.decoders import DECODERS, decoder
from tests.fuzz.mutation import MAX_BYTES, mutate

INPUTS = 150
LIMIT_S = 2.0
"""Of CPU time; more than the long form allows, as other tests may run."""


@pytest.mark.parametrize("each", DECODERS, ids=lambda each: each.name)
def test_a_decoder_raises_its_own_errors_only_and_is_quick(each: Decoder) -> None:
    chance = random.Random(each.name)
    corpus = each.corpus()
    for data in (*corpus, b"", *(mutate(chance.choice(corpus), chance, corpus) for _ in range(INPUTS))):
        assert run_one(each, data) < LIMIT_S, data


def test_a_decoder_that_crashes_is_caught() -> None:
    def crash(data: bytes) -> None:
        struct.unpack("!I", data)

    with pytest.raises(struct.error):
        run_one(Decoder("bad", crash), b"x")

    def refuse(data: bytes) -> None:
        raise ProtocolViolation("no")

    assert run_one(Decoder("good", refuse), b"x") < LIMIT_S


# A function of the product that reads part of what each of these takes.
READS = {
    "invite text": "edgellm.swarms.invite.verify",
    "invite": "edgellm.swarms.invite.verify",
    "signed invite": "edgellm.swarms.invite.roles_from_bits",
    "certificate": "edgellm.swarms.certificate.roles_from_bits",
    "signed certificate": "edgellm.swarms.certificate.peer_from_wire",
    "delegation": "edgellm.swarms.certificate._check_time",
    "signed delegation": "edgellm.swarms.certificate._check_delegation",
    "revocations": "edgellm.swarms.revocation.peer_from_wire",
    "signed revocations": "edgellm.swarms.revocation.peer_from_wire",
    "membership": "edgellm.swarms.gate.Acquaintance",
    "sealed membership": "edgellm.swarms.gate.Acquaintance",
    "greetings": "edgellm.swarms.desk.open_token",
    "signed joins": "edgellm.swarms.ledger.Ledger.redeem",
    "answers to greetings": "edgellm.swarms.join.member_of",
    "swarm questions": "edgellm.swarms.gate.Gate.present",
    "swarm news, signed": "edgellm.swarms.gate.Gate.learn",
    "swarm replies": "edgellm.swarms.gate.Gate.renewed",
    "beacon": "edgellm.p2p.mdns.split_peer",
    "sealed beacon": "edgellm.p2p.mdns.split_peer",
    "receipt": "edgellm.trust.accounts.objection",
    "signed receipt": "edgellm.trust.accounts.objection",
    "countersigned": "edgellm.trust.receipt.open_signed",
    "countersigned anew": "edgellm.trust.receipt.open_signed",
    "settlements": "edgellm.trust.settle.open_countersigned",
    "signed settlements": "edgellm.trust.settle.open_countersigned",
    "picked answers": "edgellm.trust.book.Picked",
    "scores": "edgellm.requester.spot_check.Scoring",
    "dial questions": "edgellm.p2p.autonat.ip_endpoint",
    "dial answers": "edgellm.p2p.autonat.ip_endpoint",
    "punch addresses": "edgellm.p2p.punch.is_public",
    "punch questions": "edgellm.p2p.punch.punchable",
    "punches framed": "edgellm.p2p.punch.punchable",
    "punch answers": "edgellm.p2p.punch.punchable",
    "relay questions": "edgellm.p2p.relay_server.RelayServer._carry",
    "relay answers": "edgellm.p2p.relay._status_name",
    "circuit offers": "edgellm.p2p.relay._raw_connection",
    "circuit answers": "edgellm.p2p.relay_server.RelayServer._carry",
    "identify": "edgellm.p2p.identify.Seen",
    "DHT answers": "edgellm.p2p.providers._known",
    "advert answers": "edgellm.discovery.collect.fault",
    "signed answers": "edgellm.discovery.collect.fault",
    "grants": "edgellm.leasing.hold.certificate_from_wire",
    "overlay openings": "edgellm.cluster.switchboard._After",
    "overlay replies": "edgellm.cluster.switchboard.one_line",
    "model questions": "edgellm.hosting.model_files.ProtocolViolation",
    "model answers": "edgellm.requester.model_files.one_line",
    "NAT-PMP": "edgellm.p2p.port_mapping.Mapping",
}


@pytest.mark.parametrize("name", READS)
def test_what_breaks_inside_of_a_decoder_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> object:
        raise KeyError("broken")

    each = decoder(name)
    corpus = each.corpus()
    for data in corpus:
        run_one(each, data)
    monkeypatch.setattr(READS[name], broken)
    found: list[str] = []
    for data in corpus:
        try:
            run_one(each, data)
        except (KeyError, BaseExceptionGroup) as error:
            found.append(repr(error))
    assert any("KeyError" in error for error in found)


def test_names_are_unique_and_found() -> None:
    assert len({each.name for each in DECODERS}) == len(DECODERS)
    assert decoder("varint").name == "varint"


def test_mutations_differ_and_are_bounded() -> None:
    chance = random.Random(7)
    seed = bytes(range(200))
    made = {mutate(seed, chance, [seed, b"other"]) for _ in range(500)}
    assert len(made) > 450
    assert max(map(len, made)) <= MAX_BYTES
    assert {mutate(seed, random.Random(3)) for _ in range(5)} == {mutate(seed, random.Random(3))}
