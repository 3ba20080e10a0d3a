"""Encryption of pieces, bound to what they are: a right piece under another name or region does not open.

    nonce (12) | AES-256-GCM ciphertext | tag (16)

The nonce follows from the content (as in RFC 8452), so that the same piece is the same block whoever made it, and a nonce never
serves two contents. It hides everything about a content but its length.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgellm.errors import EdgeError
from edgellm.kv.region import Region
from edgellm.kv.scope import ScopeKeys

_NONCE_BYTES = 12
_TAG_BYTES = 16
SEAL_BYTES = _NONCE_BYTES + _TAG_BYTES
"""By how much a sealed piece is longer."""
_BOUND = struct.Struct("!18s32s4I")
_VERSION = b"edgellm kv seal v1"


class NotAuthentic(EdgeError):
    """Sealed by nobody of this scope, or for another name or region."""


def seal(keys: ScopeKeys, name: bytes, region: Region, content: bytes | memoryview) -> bytes:
    """`content`, readable by this scope alone. The same for the same arguments."""
    bound = _bound(name, region)
    # 96 bits of a keyed hash of name, region and content: two contents share a nonce with a chance of 2^-32 after 2^32 pieces.
    nonce = hmac.digest(keys.nonces, bound + hashlib.sha256(content).digest(), "sha256")[:_NONCE_BYTES]
    return nonce + AESGCM(keys.sealing).encrypt(nonce, content, bound)


def open_sealed(keys: ScopeKeys, name: bytes, region: Region, sealed: bytes | memoryview) -> bytes:
    """What was sealed under this name for this region. Raises NotAuthentic."""
    if len(sealed) < SEAL_BYTES:
        raise NotAuthentic(f"{len(sealed)} bytes are no sealed piece")
    view = memoryview(sealed)
    try:
        return AESGCM(keys.sealing).decrypt(
            bytes(view[:_NONCE_BYTES]), view[_NONCE_BYTES:], _bound(name, region)
        )
    except InvalidTag:
        raise NotAuthentic("a piece was not sealed in this scope for this place") from None


def _bound(name: bytes, region: Region) -> bytes:
    return _BOUND.pack(
        _VERSION, name, region.first_layer, region.end_layer, region.first_head, region.end_head
    )
