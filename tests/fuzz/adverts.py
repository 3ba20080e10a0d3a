"""What hosts tell everybody, signed."""

from __future__ import annotations

from typing import Any

from edgellm.discovery.check import fault
from edgellm.discovery.codec import DOMAIN as ADVERT_DOMAIN
from edgellm.discovery.codec import PAYLOAD_TYPE as ADVERT_TYPE
from edgellm.discovery.codec import open_advert, seal_advert
from edgellm.discovery.collect import SequenceBook, ask_host
from edgellm.p2p.envelope import open_envelope, seal
from edgellm.p2p.network import PeerAddress
from edgellm.wire import wire_pb2
from tests.fuzz.decoder import Decoder
from tests.fuzz.peer import NOW, SELF, Bytes, Serving, in_trio, payload, prefixed
from tests.unit.samples import advert

_ISSUED_AT = 1000.0
"""Of the sample."""


def read_advert(data: bytes) -> None:
    signer, opened = open_advert(data)
    fault(opened, signer=signer, peer=SELF.peer, now=NOW, last_sequence=3)


def read_signed_advert(data: bytes) -> None:
    read_advert(seal(SELF, ADVERT_DOMAIN, ADVERT_TYPE, data))


def read_advert_answer(data: bytes) -> None:
    """What a peer answers that the DHT names as a host: only its own advert is believed."""

    async def ask() -> None:
        network: Any = Serving(Bytes(data))
        book = SequenceBook()
        seen = await ask_host(network, PeerAddress(SELF.peer), book=book, now=lambda: _ISSUED_AT)
        assert seen.advert.peer == SELF.peer
        assert book.last(SELF.peer) == seen.advert.sequence

    in_trio(ask)


def read_signed_advert_answer(data: bytes) -> None:
    envelope = seal(SELF, ADVERT_DOMAIN, ADVERT_TYPE, data)
    read_advert_answer(prefixed(wire_pb2.AdvertReply(envelope=envelope)))


def _answers() -> list[bytes]:
    return [prefixed(wire_pb2.AdvertReply(envelope=seal_advert(advert(peer=SELF.peer), SELF)))]


DECODERS = (
    Decoder("advert answers", read_advert_answer, _answers, share=0.5),
    Decoder(
        "signed answers",
        read_signed_advert_answer,
        lambda: [payload(seal_advert(advert(peer=SELF.peer), SELF), ADVERT_DOMAIN, ADVERT_TYPE)],
    ),
    Decoder(
        "envelope",
        lambda data: open_envelope(data, ADVERT_DOMAIN, ADVERT_TYPE),
        lambda: [seal_advert(advert(peer=SELF.peer), SELF)],
    ),
    Decoder("advert", read_advert, lambda: [seal_advert(advert(peer=SELF.peer), SELF)]),
    Decoder(
        "signed advert",
        read_signed_advert,
        lambda: [payload(seal_advert(advert(peer=SELF.peer), SELF), ADVERT_DOMAIN, ADVERT_TYPE)],
    ),
)
