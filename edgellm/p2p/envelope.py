"""Signed envelopes as libp2p defines them (RFC 0002): who said these bytes, and for which purpose.

The domain is part of what is signed, so an envelope of one purpose never passes for one of another.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from edgellm.errors import ProtocolViolation
from edgellm.p2p.identity import Identity, peer_of_public_key, verify
from edgellm.p2p.varint import encode_varint
from edgellm.wire import envelope_pb2

MAX_ENVELOPE_BYTES = 1 << 20
_SIGNATURE_BYTES = 64


def seal(identity: Identity, domain: str, payload_type: bytes, payload: bytes) -> bytes:
    """`payload` in a serialized envelope, signed by `identity` for `domain` and `payload_type`."""
    key = envelope_pb2.PublicKey(type=envelope_pb2.ED25519, data=identity.public_key)
    envelope = envelope_pb2.Envelope(public_key=key, payload_type=payload_type, payload=payload)
    envelope.signature = identity.sign(_signed_bytes(domain, payload_type, payload))
    return envelope.SerializeToString()


def open_envelope(
    data: bytes, domain: str, payload_type: bytes, *, max_bytes: int = MAX_ENVELOPE_BYTES
) -> tuple[str, bytes]:
    """The signer's peer id and the payload of a serialized envelope, after its signature was checked.

    Raises ProtocolViolation when `data` is over `max_bytes`, malformed, of another type, or not signed by the
    Ed25519 key that it names for this domain.
    """
    if len(data) > max_bytes:
        raise ProtocolViolation(f"a signed envelope of {len(data)} bytes is over the limit of {max_bytes}")
    try:
        envelope = envelope_pb2.Envelope.FromString(data)
    except DecodeError as error:
        raise ProtocolViolation("a signed envelope is malformed") from error
    key = envelope.public_key
    if key.type != envelope_pb2.ED25519 or len(key.data) != 32 or len(envelope.signature) != _SIGNATURE_BYTES:
        raise ProtocolViolation("a signed envelope has no Ed25519 key and signature")
    if envelope.payload_type != payload_type:
        raise ProtocolViolation(
            f"a signed envelope holds {envelope.payload_type[:32]!r} instead of {payload_type!r}"
        )
    peer = peer_of_public_key(key.data)
    if not verify(peer, _signed_bytes(domain, payload_type, envelope.payload), envelope.signature):
        raise ProtocolViolation(f"a signed envelope for {domain!r} was not signed by peer {peer}")
    return peer, envelope.payload


def _signed_bytes(domain: str, payload_type: bytes, payload: bytes) -> bytes:
    parts = (domain.encode(), payload_type, payload)
    return b"".join(encode_varint(len(part)) + part for part in parts)
