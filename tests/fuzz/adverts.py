"""What hosts tell everybody, signed."""

from __future__ import annotations

from edgellm.discovery.check import fault
from edgellm.discovery.codec import DOMAIN as ADVERT_DOMAIN
from edgellm.discovery.codec import PAYLOAD_TYPE as ADVERT_TYPE
from edgellm.discovery.codec import open_advert, seal_advert
from edgellm.p2p.envelope import open_envelope, seal
from tests.fuzz.decoder import Decoder
from tests.fuzz.peer import NOW, SELF, payload
from tests.unit.samples import advert


def read_advert(data: bytes) -> None:
    signer, opened = open_advert(data)
    fault(opened, signer=signer, peer=SELF.peer, now=NOW, last_sequence=3)


def read_signed_advert(data: bytes) -> None:
    read_advert(seal(SELF, ADVERT_DOMAIN, ADVERT_TYPE, data))


DECODERS = (
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
