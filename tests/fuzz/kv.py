"""Who has which KV pieces."""

from __future__ import annotations

from edgellm.blocks.cid import Cid
from edgellm.kv import exchange as kv_exchange
from edgellm.kv.records import DOMAIN as KV_DOMAIN
from edgellm.kv.records import PAYLOAD_TYPE as KV_TYPE
from edgellm.kv.records import Record, open_batch, seal_batch
from edgellm.kv.region import Region
from edgellm.p2p.envelope import seal
from edgellm.wire import wire_pb2
from tests.fuzz.decoder import EARLY, Decoder
from tests.fuzz.peer import NOW, SELF, at_once, payload, wire

SCOPE_BYTES = 32


def sample_batch() -> bytes:
    cid = Cid.of(b"block")
    region = Region(0, 8, 0, 4)
    return seal_batch([Record(bytes(SCOPE_BYTES), bytes(32), region, (cid,), 5, SELF.peer, NOW)], SELF)


def read_signed_batch(data: bytes) -> None:
    open_batch(seal(SELF, KV_DOMAIN, KV_TYPE, data))


class KvAnswers:
    async def find(self, *_: object) -> kv_exchange.Known:
        return kv_exchange.Known()

    sample = find

    async def announce(self, peer: str, scope: bytes, batch: bytes, *_: object) -> int:
        return len(open_batch(batch).records) if batch else 0

    async def settle(self, *_: object) -> None:
        return None

    measure = settle


def read_kv_request(data: bytes) -> None:
    at_once(kv_exchange._answered(KvAnswers(), SELF.peer, wire_pb2.KvRequest.FromString(data)))


def read_kv_found(data: bytes) -> None:
    kv_exchange._known(wire_pb2.KvFound.FromString(data), bytes(SCOPE_BYTES), frozenset())


DECODERS = (
    Decoder("KV batch", open_batch, lambda: [sample_batch()]),
    Decoder("signed KV batch", read_signed_batch, lambda: [payload(sample_batch(), KV_DOMAIN, KV_TYPE)]),
    Decoder(
        "KV questions",
        read_kv_request,
        lambda: [
            wire(wire_pb2.KvRequest(find=wire_pb2.KvFind(scope_id=bytes(SCOPE_BYTES), names=[bytes(32)]))),
            wire(
                wire_pb2.KvRequest(
                    announce=wire_pb2.KvAnnounce(scope_id=bytes(SCOPE_BYTES), batch=sample_batch())
                )
            ),
        ],
        EARLY,
    ),
    Decoder(
        "KV answers",
        read_kv_found,
        lambda: [
            wire(
                wire_pb2.KvFound(
                    records=wire_pb2.KvBatch.FromString(payload(sample_batch(), KV_DOMAIN, KV_TYPE)).records,
                    holders=[wire_pb2.KvHolder(peer=SELF.peer, addresses=["/ip4/10.0.0.1/tcp/1"])],
                )
            )
        ],
        EARLY,
    ),
)
