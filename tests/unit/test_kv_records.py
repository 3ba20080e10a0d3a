"""Records: what a holder signed, whole, or nothing."""

from __future__ import annotations

import dataclasses

import pytest

from edgellm.blocks.cid import Cid
from edgellm.errors import ProtocolViolation, UsageError
from edgellm.kv.records import DOMAIN, MAX_RECORDS, PAYLOAD_TYPE, Batch, Record, open_batch, seal_batch
from edgellm.kv.region import Region
from edgellm.p2p.envelope import seal
from edgellm.p2p.identity import Identity
from edgellm.wire import wire_pb2

HOLDER = Identity.from_seed(b"h" * 32)
RECORD = Record(
    scope=b"s" * 32,
    name=b"n" * 32,
    region=Region(0, 4, 0, 2),
    cids=(Cid.of(b"one"), Cid.of(b"two")),
    size_bytes=(1 << 20) + 5,
    holder=HOLDER.peer,
    expires_at=2000.0,
)


def test_what_was_signed_arrives() -> None:
    records = (RECORD, dataclasses.replace(RECORD, name=b"m" * 32, region=Region(4, 8, 0, 2)))
    assert open_batch(seal_batch(records, HOLDER)) == Batch(HOLDER.peer, RECORD.scope, records)


def test_a_full_batch_of_pieces_of_usual_size_fits() -> None:
    records = [dataclasses.replace(RECORD, name=number.to_bytes(32, "big")) for number in range(MAX_RECORDS)]
    assert len(open_batch(seal_batch(records, HOLDER)).records) == MAX_RECORDS


@pytest.mark.parametrize(
    "records",
    [
        [],
        [RECORD] * (MAX_RECORDS + 1),
        [dataclasses.replace(RECORD, holder="somebody")],
        [RECORD, dataclasses.replace(RECORD, scope=b"t" * 32)],
    ],
    ids=["none", "too many", "another's", "two scopes"],
)
def test_what_is_no_batch_is_not_signed(records: list[Record]) -> None:
    with pytest.raises(UsageError):
        seal_batch(records, HOLDER)


def test_a_changed_batch_is_refused() -> None:
    envelope = bytearray(seal_batch([RECORD], HOLDER))
    envelope[len(envelope) // 2] ^= 1
    with pytest.raises(ProtocolViolation):
        open_batch(bytes(envelope))


@pytest.mark.parametrize(
    "changed",
    [
        {"name": b"short"},
        {"digests": b""},
        {"digests": b"odd"},
        {"digests": bytes(32 * 300)},
        {"size_bytes": 0},
        {"size_bytes": 5 << 20},
        {"size_bytes": 1 << 20},
        {"region": wire_pb2.KvRegion(first_layer=3, end_layer=3, end_head=1)},
    ],
    ids=["name", "no blocks", "odd", "too many blocks", "empty", "larger", "smaller", "no region"],
)
def test_a_record_that_cannot_be_is_refused_though_it_is_signed(changed: dict[str, object]) -> None:
    honest = wire_pb2.KvBatch.FromString(
        wire_pb2.KvBatch(
            scope_id=RECORD.scope,
            records=[
                wire_pb2.KvRecord(
                    name=RECORD.name,
                    region=wire_pb2.KvRegion(end_layer=4, end_head=2),
                    digests=bytes(64),
                    size_bytes=RECORD.size_bytes,
                    expires_unix_s=2000,
                )
            ],
        ).SerializeToString()
    )
    assert len(open_batch(seal(HOLDER, DOMAIN, PAYLOAD_TYPE, honest.SerializeToString())).records) == 1
    for name, value in changed.items():
        if name == "region":
            honest.records[0].region.CopyFrom(value)  # type: ignore[arg-type]
        else:
            setattr(honest.records[0], name, value)
    with pytest.raises(ProtocolViolation):
        open_batch(seal(HOLDER, DOMAIN, PAYLOAD_TYPE, honest.SerializeToString()))


def test_a_batch_without_a_scope_or_of_garbage_is_refused() -> None:
    for payload in (wire_pb2.KvBatch(scope_id=b"x").SerializeToString(), b"\xff" * 10, b""):
        with pytest.raises(ProtocolViolation):
            open_batch(seal(HOLDER, DOMAIN, PAYLOAD_TYPE, payload))
    with pytest.raises(ProtocolViolation):
        open_batch(seal(HOLDER, "edgellm-advert-v1", PAYLOAD_TYPE, wire_pb2.KvBatch().SerializeToString()))
