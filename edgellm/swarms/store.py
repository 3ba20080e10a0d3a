"""A swarm on this machine's disk: one directory below the state, named as its user calls the swarm.

All files are readable by their owner only, and replaced whole.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from edgellm.errors import MembershipError, UsageError
from edgellm.p2p.identity import Identity, load_or_create_identity
from edgellm.paths import Paths
from edgellm.swarms.certificate import Certificate, open_certificate, seal_certificate
from edgellm.swarms.chosen import NAME, OPEN, joined_names, not_joined
from edgellm.swarms.ledger import Ledger
from edgellm.swarms.revocation import Revocations, open_revocations, seal_revocations
from edgellm.swarms.seal import derived

T = TypeVar("T")


class SwarmRecord(msgspec.Struct, frozen=True):
    """What does not change while this machine is a member."""

    swarm: str
    """The id of its root key."""
    secret: bytes
    issuer: str
    """The peer that renews certificates."""
    issuer_addresses: tuple[str, ...] = ()
    """Without /p2p."""


@dataclass(frozen=True, slots=True)
class SwarmHome:
    """One swarm that this user is a member of."""

    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def identity(self) -> Path:
        """The member's key: this machine is another peer in each swarm, so that nobody can tell that it is in both."""
        return self.directory / "member.key"

    @property
    def is_makers(self) -> bool:
        return (self.directory / "root.key").exists()

    def record(self) -> SwarmRecord:
        return _decoded(self.directory / "swarm.json", SwarmRecord)

    def kv_secret(self) -> bytes:
        """Of the scope "swarm" of KV caches: all members have it."""
        return derived(self.record().secret, "kv scope")

    def member(self) -> Identity:
        """Raises UsageError where the key is damaged or others can read it."""
        return load_or_create_identity(self.identity)

    def root(self) -> Identity:
        """Raises MembershipError where this machine did not make the swarm."""
        if not self.is_makers:
            raise MembershipError(
                f"only the machine that made swarm {self.name} can do that",
                remedy="run it there, as the user who ran `edgellm swarm create`",
            )
        return load_or_create_identity(self.directory / "root.key")

    # --- what changes

    def certificate_envelope(self) -> bytes:
        return _read(self.directory / "certificate")

    def certificate(self) -> Certificate:
        return open_certificate(self.certificate_envelope(), self.record().swarm)

    def keep_certificate(self, envelope: bytes) -> None:
        write_private(self.directory / "certificate", envelope)

    def revocations_envelope(self) -> bytes:
        """b"" where nobody was revoked yet."""
        path = self.directory / "revocations"
        return path.read_bytes() if path.exists() else b""

    def revocations(self) -> Revocations:
        envelope = self.revocations_envelope()
        return open_revocations(envelope, self.record().swarm) if envelope else Revocations()

    def keep_revocations(self, envelope: bytes) -> None:
        """Unless a newer list is there already. Raises MembershipError for one that the swarm did not sign."""
        with self._locked():
            if open_revocations(envelope, self.record().swarm).sequence > self.revocations().sequence:
                write_private(self.directory / "revocations", envelope)

    def addresses(self) -> tuple[str, ...]:
        """Where the node that this machine ran last could be reached, with /p2p."""
        path = self.directory / "addresses"
        return tuple(path.read_text().split()) if path.exists() else ()

    def keep_addresses(self, addresses: tuple[str, ...]) -> None:
        write_private(self.directory / "addresses", "\n".join(addresses).encode())

    # --- the maker's

    def ledger(self) -> Ledger:
        self.root()
        return _decoded(self.directory / "ledger.json", Ledger)

    @contextmanager
    def changing_ledger(self) -> Iterator[Ledger]:
        """The ledger as it is now; nobody else changes it until the context ends. Write the new one with `keep_ledger`."""
        with self._locked():
            yield self.ledger()

    def keep_ledger(self, ledger: Ledger) -> None:
        write_private(self.directory / "ledger.json", msgspec.json.encode(ledger))

    def revoke(self, peer: str) -> None:
        """Ends a membership: in the ledger, and by a new list. Raises MembershipError."""
        root = self.root()
        with self.changing_ledger() as ledger:
            now = time.time()
            changed = ledger.revoke_member(peer, now)
            revocations = self.revocations().with_peer(peer, now)
            write_private(self.directory / "revocations", seal_revocations(root, revocations))
            self.keep_ledger(changed)

    def forget(self) -> None:
        """Takes the swarm off this machine."""
        shutil.rmtree(self.directory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def swarms_of(paths: Paths) -> list[SwarmHome]:
    """All swarms that this user is a member of, by name."""
    return [SwarmHome(paths.state / "swarms" / name) for name in joined_names(paths)]


def swarm_home(paths: Paths, name: str) -> SwarmHome:
    """Raises UsageError for a swarm that this user is not in."""
    names = joined_names(paths)
    if name not in names:
        raise not_joined(name, names)
    return SwarmHome(paths.state / "swarms" / name)


def checked_swarm_name(paths: Paths, name: str) -> str:
    """A name for a new swarm of this user. Raises UsageError where it cannot be one, or is taken."""
    if not NAME.fullmatch(name) or name == OPEN:
        raise UsageError(
            f"{name!r} is no name for a swarm",
            remedy="use up to 32 small letters, digits and dashes, and not 'open'",
        )
    if name in joined_names(paths):
        raise UsageError(
            f"this machine is in a swarm called {name!r} already", remedy="choose another name with --name"
        )
    return name


def make_swarm(paths: Paths, name: str, who: str) -> SwarmHome:
    """A new swarm, of which this machine, as `who`, is the maker and first member. Raises UsageError."""
    checked_swarm_name(paths, name)
    root, member = Identity.generate(), Identity.generate()
    record = SwarmRecord(root.peer, secrets.token_bytes(32), issuer=member.peer)
    roles = frozenset(("host", "requester"))
    ledger, certificate = Ledger(root.peer).admit(member.peer, who, roles, secrets.token_hex(16), time.time())
    with _new_home(paths, name) as home:
        _write_key(home / "root.key", root)
        _write_key(home / "member.key", member)
        write_private(home / "ledger.json", msgspec.json.encode(ledger))
        write_private(home / "certificate", seal_certificate(root, certificate))
        write_private(home / "swarm.json", msgspec.json.encode(record))
    return swarm_home(paths, name)


def keep_membership(
    paths: Paths,
    name: str,
    record: SwarmRecord,
    member: Identity,
    certificate: bytes,
    bootstrap: tuple[str, ...],
) -> SwarmHome:
    """What somebody got who has joined. Raises UsageError where the name is taken."""
    with _new_home(paths, name) as home:
        _write_key(home / "member.key", member)
        write_private(home / "certificate", certificate)
        write_private(home / "bootstrap", "".join(f"{address}\n" for address in bootstrap).encode())
        write_private(home / "swarm.json", msgspec.json.encode(record))
    return swarm_home(paths, name)


def applicants_key(paths: Paths, swarm: str, invite: str) -> Path:
    """Where the key lies with which this machine asks for the membership of an invite, until it has it.

    An issuer whose answer was lost gives the same peer the same again, and counts it once.
    """
    (paths.state / "swarms").mkdir(mode=0o700, exist_ok=True)
    return paths.state / "swarms" / f".{swarm}.{invite}.key"


def write_private(path: Path, content: bytes) -> None:
    """The whole file or none of it, on the disk when this returns, readable by its owner only."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    _sync_directory(path.parent)


@contextmanager
def _new_home(paths: Paths, name: str) -> Iterator[Path]:
    """A directory to fill, which is the swarm's when all of it is there."""
    top = paths.state / "swarms"
    top.mkdir(mode=0o700, exist_ok=True)
    new = top / f".{name}.{secrets.token_hex(4)}"
    new.mkdir(mode=0o700)
    try:
        yield new
        try:
            new.rename(top / name)
        except OSError as error:
            raise UsageError(f"{top / name} is there already", remedy="choose another name") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _sync_directory(top)


def _write_key(path: Path, identity: Identity) -> None:
    write_private(path, identity.file_content())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", remedy="leave the swarm and join it with a new invite"
        ) from error


def _decoded(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(_read(path), type=kind)
    except msgspec.MsgspecError as error:
        raise UsageError(
            f"{path} is damaged: {error}", remedy="restore it from a copy, or leave the swarm"
        ) from error
