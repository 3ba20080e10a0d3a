"""What a chunk is called: nothing that tells an outsider whether two prompts begin alike."""

from __future__ import annotations

import hmac

from edgellm.kv.scope import ScopeKeys

NAME_BYTES = 32


def chunk_name(keys: ScopeKeys, namespace: bytes, chunk_hash: bytes, salt: str) -> bytes:
    """HMAC-SHA256 under the scope's key; 32 bytes.

    `namespace` is a `Namespace.digest`, `chunk_hash` is over the chunk's tokens and all before it, `salt` is the request's own.
    """
    parts = (namespace, chunk_hash, salt.encode())
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.digest(keys.naming, message, "sha256")
