"""Configuration and tokenizer of models that this machine does not hold: fetched once, verified before they can be seen."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import ModelError, ProtocolViolation
from edgellm.models.disk import disk_errors
from edgellm.models.manifest import check_manifest, decode_manifest, digest, encode_manifest
from edgellm.types.model import ModelManifest

_MANIFEST = ".manifest.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HeldModel:
    manifest: ModelManifest
    directory: Path


class LightStore:
    """A directory with one subdirectory for each digest. What is in it was verified and is complete."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, wanted: str) -> HeldModel | None:
        """What is kept under the digest `wanted` (hex), hashes checked again, or None."""
        if not _DIGEST.fullmatch(wanted):
            return None
        directory = self._directory / wanted
        try:
            manifest = decode_manifest((directory / _MANIFEST).read_bytes())
            intact = all(
                (directory / file.path).stat().st_size == file.size_bytes
                and hashlib.sha256((directory / file.path).read_bytes()).hexdigest() == file.sha256
                for file in manifest.light_files
            )
        except (OSError, ProtocolViolation):
            return None
        return HeldModel(manifest, directory) if intact and digest(manifest) == wanted else None

    def keep(self, manifest: ModelManifest, contents: Mapping[str, bytes]) -> HeldModel:
        """Stores `contents`, the light files of `manifest` by path; all of them become visible at once.

        Raises ProtocolViolation when one is missing or differs from the manifest, ModelError when they cannot be written.
        """
        check_manifest(manifest)
        for file in manifest.light_files:
            content = contents.get(file.path)
            if content is None or len(content) != file.size_bytes:
                raise ProtocolViolation(f"a host sent {file.path} of another size than the manifest says")
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise ProtocolViolation(f"a host sent a {file.path} that differs from the manifest")
        wanted = digest(manifest)
        with disk_errors("storing the model's tokenizer", self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self._directory))
            try:
                for file in manifest.light_files:
                    (partial / file.path).write_bytes(contents[file.path])
                (partial / _MANIFEST).write_bytes(encode_manifest(manifest))
                held = self._publish(partial, wanted)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        if held is None:
            raise ModelError(f"{self._directory / wanted} changed while it was written", remedy="ask again")
        return held

    def _publish(self, partial: Path, wanted: str) -> HeldModel | None:
        """Gives `partial` its final name, unless another process was first: that one's copy is as good, and in use."""
        held = self.find(wanted)
        if held is not None:
            return held
        target = self._directory / wanted
        shutil.rmtree(target, ignore_errors=True)
        try:
            partial.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        return self.find(wanted)
