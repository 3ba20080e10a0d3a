"""The Ed25519 key that a peer is: made, kept in a private file, and used by one process at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgellm.errors import UsageError

# libp2p peer-id specification: a key of at most 42 bytes is its own id, as an identity multihash (code 0,
# length 36) of the protobuf PublicKey{Ed25519, 32 bytes}. The file holds PrivateKey{Ed25519, seed + public}.
_PUBLIC_PREFIX = bytes.fromhex("08011220")
_PEER_PREFIX = bytes.fromhex("0024") + _PUBLIC_PREFIX
_PRIVATE_PREFIX = bytes.fromhex("08011240")


@dataclass(frozen=True)
class Identity:
    """An Ed25519 key pair and the base58 peer id that follows from it."""

    private_key: Ed25519PrivateKey = field(repr=False, compare=False)
    peer: str

    @classmethod
    def generate(cls) -> Identity:
        """A fresh identity that is kept nowhere: for requesters and tests."""
        return cls.from_seed(secrets.token_bytes(32))

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a 32-byte Ed25519 seed (RFC 8032)."""
        key = Ed25519PrivateKey.from_private_bytes(seed)
        return cls(key, peer_of_public_key(key.public_key().public_bytes_raw()))

    @property
    def public_key(self) -> bytes:
        """The 32 raw bytes of the public key."""
        return self.private_key.public_key().public_bytes_raw()

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes that everything else follows from."""
        return self.private_key.private_bytes_raw()

    def file_content(self) -> bytes:
        """What the file of this identity holds: as secret as the seed."""
        return _PRIVATE_PREFIX + self.seed + self.public_key

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `data`."""
        return self.private_key.sign(data)


def peer_of_public_key(public_key: bytes) -> str:
    """The base58 peer id of the 32 raw bytes of an Ed25519 public key."""
    if len(public_key) != 32:
        raise ValueError(f"an Ed25519 public key has 32 bytes, not {len(public_key)}")
    return base58.b58encode(_PEER_PREFIX + public_key).decode("ascii")


def public_key_of_peer(peer: str) -> bytes:
    """The 32 raw bytes of the Ed25519 key inside a base58 peer id. Raises ValueError for any other id."""
    decoded = base58.b58decode(peer) if len(peer) <= 64 else b""
    if len(decoded) != 38 or not decoded.startswith(_PEER_PREFIX):
        raise ValueError(f"{peer[:80]!r} is no Ed25519 peer id")
    return decoded[len(_PEER_PREFIX) :]


def verify(peer: str, data: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `peer` over `data`. Raises ValueError when `peer` is no Ed25519 id."""
    key = Ed25519PublicKey.from_public_bytes(public_key_of_peer(peer))
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def load_or_create_identity(path: Path) -> Identity:
    """The identity in the file at `path`, made first when there is none (mode 0600, atomically).

    Raises UsageError when the file can be read or written by others, is damaged, or cannot be made.
    """
    try:
        if not path.exists():
            _create(path)
        return _load(path)
    except OSError as error:
        raise UsageError(
            f"cannot use the identity file {path}: {error.strerror}",
            remedy="choose a directory that you can write to, with free space",
        ) from error


@contextmanager
def exclusive_identity(path: Path) -> Iterator[Identity]:
    """The identity at `path`, held so that no other process can run under it at the same time.

    Raises UsageError naming the file and the process that holds it, and where `load_or_create_identity` does.
    """
    identity = load_or_create_identity(path)
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UsageError(f"cannot make the lock file {lock_path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise UsageError(
                f"identity {path} is in use by process {holder}",
                remedy=f"stop that process, or give this one its own home or identity file (pid {holder})",
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
        yield identity
    finally:
        # The file stays: removing it would let a third process lock a name that a second one still waits on.
        os.close(lock)


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity = Identity.generate()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(identity.file_content())
            file.flush()
            os.fsync(descriptor)
        # A link, not a rename: of two processes that create it at once the first wins, and both load its key.
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path) -> Identity:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        content = file.read(128)
    if mode & 0o077:
        raise UsageError(
            f"identity file {path} may be read or written by others (mode {mode:04o})",
            remedy=f"chmod 600 {path}  (and make a new identity if others may have read it)",
        )
    identity = Identity.from_seed(content[4:36]) if len(content) == 68 else None
    if identity is None or content != identity.file_content():
        raise UsageError(
            f"identity file {path} is damaged",
            remedy="restore it from a copy, or remove it to become a new peer",
        )
    return identity
