"""Who holds a piece, in which blocks: said and signed by the holder, and only for a while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from edgellm.blocks.cid import Cid
from edgellm.blocks.store import MAX_BLOCK_BYTES
from edgellm.errors import ProtocolViolation, UsageError
from edgellm.kv.names import NAME_BYTES
from edgellm.kv.region import Region
from edgellm.p2p.envelope import open_envelope, seal
from edgellm.p2p.identity import Identity
from edgellm.wire import wire_pb2

DOMAIN = "edgellm-kv-v1"
PAYLOAD_TYPE = b"/edgellm/kv-records"
MAX_RECORDS = 256
"""In one batch."""
MAX_BLOCKS = 256
"""Of one piece: 256 MiB."""
MAX_BATCH_BYTES = 256 << 10
_DIGEST_BYTES = 32
_SCOPE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Record:
    """A piece that `holder` keeps. `cids` are its blocks in order, `size_bytes` their length together."""

    scope: bytes
    name: bytes
    region: Region
    cids: tuple[Cid, ...]
    size_bytes: int
    holder: str
    """Peer id, proven by the signature where the record came over the network."""
    expires_at: float
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one holder and one scope, as its signature covers them."""

    holder: str
    scope: bytes
    records: tuple[Record, ...]


def seal_batch(records: Sequence[Record], identity: Identity) -> bytes:
    """Records of `identity` in one scope, signed. Raises UsageError for another's, several scopes, none, or too many."""
    if not 1 <= len(records) <= MAX_RECORDS:
        raise UsageError(f"a batch has 1 to {MAX_RECORDS} records, not {len(records)}")
    if {(record.holder, record.scope) for record in records} != {(identity.peer, records[0].scope)}:
        raise UsageError("a batch has records of one scope, and of the peer that signs it")
    batch = wire_pb2.KvBatch(
        scope_id=records[0].scope, records=[record_to_wire(record) for record in records]
    )
    return seal(identity, DOMAIN, PAYLOAD_TYPE, batch.SerializeToString())


def open_batch(envelope: bytes) -> Batch:
    """What a holder signed; expired records too, which `edgellm.kv.index` does not take.

    Raises ProtocolViolation for anything that no honest holder makes.
    """
    holder, payload = open_envelope(envelope, DOMAIN, PAYLOAD_TYPE, max_bytes=MAX_BATCH_BYTES)
    try:
        batch = wire_pb2.KvBatch.FromString(payload)
    except DecodeError as error:
        raise ProtocolViolation("a batch of KV records is malformed") from error
    if len(batch.scope_id) != _SCOPE_BYTES or not 1 <= len(batch.records) <= MAX_RECORDS:
        raise ProtocolViolation("a batch of KV records names no scope, or has none or too many of them")
    records = tuple(record_from_wire(record, batch.scope_id, holder) for record in batch.records)
    return Batch(holder, batch.scope_id, records)


def record_to_wire(record: Record, holder: int = 0) -> wire_pb2.KvRecord:
    """`holder` is its place in the message's list of them."""
    region = record.region
    return wire_pb2.KvRecord(
        name=record.name,
        region=wire_pb2.KvRegion(
            first_layer=region.first_layer,
            end_layer=region.end_layer,
            first_head=region.first_head,
            end_head=region.end_head,
        ),
        digests=b"".join(cid.digest for cid in record.cids),
        size_bytes=record.size_bytes,
        expires_unix_s=int(record.expires_at),
        holder=holder,
    )


def record_from_wire(record: wire_pb2.KvRecord, scope: bytes, holder: str) -> Record:
    """Raises ProtocolViolation for one that cannot be."""
    wire, digests = record.region, record.digests
    try:
        region = Region(wire.first_layer, wire.end_layer, wire.first_head, wire.end_head)
    except UsageError as error:
        raise ProtocolViolation(f"a KV record of no region: {error}") from error
    blocks, odd = divmod(len(digests), _DIGEST_BYTES)
    if len(record.name) != NAME_BYTES or odd or not 1 <= blocks <= MAX_BLOCKS:
        raise ProtocolViolation("a KV record without a name of 32 bytes or without whole digests")
    if not (blocks - 1) * MAX_BLOCK_BYTES < record.size_bytes <= blocks * MAX_BLOCK_BYTES:
        raise ProtocolViolation(f"a KV record of {record.size_bytes} bytes in {blocks} blocks")
    starts = range(0, len(digests), _DIGEST_BYTES)
    return Record(
        scope=scope,
        name=record.name,
        region=region,
        cids=tuple(Cid(digests[start : start + _DIGEST_BYTES]) for start in starts),
        size_bytes=record.size_bytes,
        holder=holder,
        expires_at=float(record.expires_unix_s),
    )
