"""Who can read pieces: everybody who has the scope's secret. All keys of a scope follow from it."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgellm.errors import UsageError

if TYPE_CHECKING:
    from edgellm.paths import Paths

SECRET_BYTES = 32
_KEY_BYTES = 32
PUBLIC_SECRET = hashlib.sha256(b"edgellm kv scope public v1").digest()
"""Everybody has it: what is shared in the public scope is authentic for nobody and private for nobody."""


@dataclass(frozen=True, slots=True)
class ScopeKeys:
    """Derived by HKDF-SHA256 (RFC 5869) with a label each, so that none tells anything about another."""

    scope_id: bytes
    """What nodes know the scope by; not secret."""
    naming: bytes = field(repr=False)
    sealing: bytes = field(repr=False)
    nonces: bytes = field(repr=False)

    @classmethod
    def derive(cls, secret: bytes) -> Self:
        """Of a secret of 32 bytes. Raises UsageError for another length."""
        if len(secret) != SECRET_BYTES:
            raise UsageError(f"a scope's secret has {SECRET_BYTES} bytes, not {len(secret)}")
        return cls(*(_derived(secret, label) for label in ("id", "naming", "sealing", "nonces")))


def _derived(secret: bytes, label: str) -> bytes:
    info = b"edgellm kv scope v1 " + label.encode()
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(secret)


def scope_secret(scope: str, paths: Paths, of_swarm: bytes | None = None) -> bytes:
    """The secret of "session" (this user's own, made on first use), of "public", or of "swarm": `of_swarm`.

    Raises UsageError where it cannot be had: there is none for the open swarm, where `of_swarm` is None.
    """
    match scope:
        case "session":
            return _own_secret(paths)
        case "public":
            return PUBLIC_SECRET
        case "swarm" if of_swarm is not None:
            return of_swarm
        case "swarm":
            raise UsageError(
                "the scope swarm needs a private swarm, and this is the open one",
                remedy="use --kv-scope session, or say --swarm NAME",
            )
        case _:
            raise UsageError(f"{scope!r} is no scope", remedy="use session, swarm or public")


def _own_secret(paths: Paths) -> bytes:
    path = paths.state / "kv-session.key"
    with suppress(FileExistsError):
        # Whole or not at all, and by one process only: a link to a finished file fails where there is one.
        new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(SECRET_BYTES))
                file.flush()
                os.fsync(file.fileno())
            os.link(new, path)
        finally:
            new.unlink()
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise UsageError(
            f"{path} can be read by others (mode {mode:o}), and it opens your KV blocks",
            remedy=f"run `chmod 600 {path}`; if others may have read it, delete it",
        )
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise UsageError(
            f"{path} has {len(secret)} bytes instead of {SECRET_BYTES}",
            remedy="delete it: a new one is made, and blocks of the old one are computed again",
        )
    return secret
