"""Where a node keeps what: identity and sequence numbers, caches, and sockets.

`EDGELLM_HOME` puts everything under one directory, so that several nodes can live on one machine.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from edgellm.errors import UsageError

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path that Linux takes (sockaddr_un.sun_path less its final zero)."""


@dataclass(frozen=True, slots=True)
class Paths:
    state: Path
    """Kept for ever: the identity, the last advert's sequence number, the bootstrap peers."""
    cache: Path
    """Can be deleted at any time: file hashes, measurements, configs and tokenizers fetched from hosts."""
    runtime: Path
    """Sockets and generated files of running clusters; mode 0700; gone after a reboot. Short: see above."""

    @property
    def identity(self) -> Path:
        return self.state / "identity.key"

    @property
    def quota(self) -> Path:
        """What was lent lately, for `edgellm host --quota`."""
        return self.state / "quota.json"

    @property
    def kv(self) -> Path:
        """Blocks, and records of who holds what."""
        return self.cache / "kv"

    @property
    def blocks(self) -> Path:
        """The embedded block store. A cache: what is lost is computed again."""
        return self.kv / "blocks"

    @property
    def sessions(self) -> Path:
        return self.runtime / "s"

    @property
    def journals(self) -> Path:
        """Of sessions: what brings one back after its daemon or the machine has died."""
        return self.state / "sessions"


def default_paths() -> Paths:
    """The directories of this user (or of `EDGELLM_HOME`), made if need be.

    Raises UsageError when one cannot be made or the runtime directory belongs to somebody else.
    """
    home = os.environ.get("EDGELLM_HOME")
    if home:
        root = Path(home).absolute()
        paths = Paths(root / "state", root / "cache", root / "run")
    else:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        paths = Paths(
            state=Path(platformdirs.user_state_dir("edgellm")),
            cache=Path(platformdirs.user_cache_dir("edgellm")),
            runtime=Path(runtime or tempfile.gettempdir()) / f"edgellm-{os.getuid()}",
        )
    for directory in (paths.state, paths.cache, paths.runtime):
        _make_private(directory)
    return paths


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = directory.stat().st_uid
    except OSError as error:
        raise UsageError(
            f"cannot use {directory}: {error.strerror}",
            remedy="make it writable, or set EDGELLM_HOME to a directory of your own",
        ) from error
    if owner != os.getuid():
        raise UsageError(
            f"{directory} belongs to another user (uid {owner})",
            remedy="set EDGELLM_HOME to a directory of your own",
        )
    directory.chmod(0o700)
