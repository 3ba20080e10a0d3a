"""What two members say to each other before they know each other. Pure.

It is encrypted under a key that follows from the swarm's secret and the hash of the connection's handshake: nobody without the
secret reads it or makes one, and one of another connection, or of the other direction, does not open. A stranger does not even
learn which swarm a peer is in.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from google.protobuf.message import DecodeError

from edgellm.errors import MembershipError
from edgellm.wire import swarm_pb2

SECRET_BYTES = 32
MAX_SEALED_BYTES = 4096
_NONCE = bytes(12)
"""The same each time: no key is used twice."""


def derived(secret: bytes, purpose: str, *, salt: bytes = b"") -> bytes:
    """A key of 32 bytes for one purpose, by HKDF-SHA256 (RFC 5869)."""
    info = b"edgellm swarm v1 " + purpose.encode()
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


def seal_membership(
    secret: bytes, handshake: bytes, message: swarm_pb2.Membership, *, from_dialler: bool
) -> bytes:
    key = _key(secret, handshake, from_dialler=from_dialler)
    return ChaCha20Poly1305(key).encrypt(_NONCE, message.SerializeToString(), None)


def open_membership(
    secret: bytes, handshake: bytes, sealed: bytes, *, from_dialler: bool
) -> swarm_pb2.Membership:
    """Raises MembershipError for what nobody with this secret said on this connection."""
    if len(sealed) > MAX_SEALED_BYTES:
        raise MembershipError("what a stranger said is too long", fault="stranger")
    try:
        key = _key(secret, handshake, from_dialler=from_dialler)
        return swarm_pb2.Membership.FromString(ChaCha20Poly1305(key).decrypt(_NONCE, sealed, None))
    except (InvalidTag, DecodeError) as error:
        raise MembershipError("it does not know the swarm's secret", fault="stranger") from error


def _key(secret: bytes, handshake: bytes, *, from_dialler: bool) -> bytes:
    return derived(secret, "membership dialler" if from_dialler else "membership listener", salt=handshake)
