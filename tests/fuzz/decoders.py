"""What is fuzzed. To add a decoder, add a `Decoder` to the `DECODERS` of its subject: a name, a function of bytes, and inputs
that it takes. A new subject is a module here and a line below.
"""

from __future__ import annotations

from tests.fuzz import (
    addresses,
    adverts,
    blocks,
    kv,
    leases,
    local,
    muxer,
    nat,
    overlays,
    requests,
    swarms,
    trust,
)
from tests.fuzz.decoder import Decoder

_SUBJECTS = (addresses, adverts, leases, overlays, kv, blocks, requests, local, muxer, swarms, trust, nat)
DECODERS: tuple[Decoder, ...] = tuple(each for subject in _SUBJECTS for each in subject.DECODERS)


def decoder(name: str) -> Decoder:
    return next(each for each in DECODERS if each.name == name)
