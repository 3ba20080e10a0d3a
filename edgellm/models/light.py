"""Configuration and tokenizer of models that this machine does not hold: fetched once, verified before they can be seen."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import ModelError, ProtocolViolation
from edgellm.models.disk import disk_errors
from edgellm.models.manifest import check_path, decode_manifest, digest, encode_manifest
from edgellm.types.model import ModelManifest

MAX_LIGHT_BYTES = 64 << 20
"""All configuration and tokenizer files of a model together; the largest tokenizers have about 20 MB."""

_MANIFEST = ".manifest.json"


@dataclass(frozen=True, slots=True)
class HeldModel:
    manifest: ModelManifest
    directory: Path


class LightStore:
    """A directory with one subdirectory for each digest. What is in it was verified and is complete."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, wanted: str) -> HeldModel | None:
        """What is kept under the digest `wanted` (hex), or None. A damaged entry is forgotten."""
        directory = self._directory / wanted
        try:
            manifest = decode_manifest((directory / _MANIFEST).read_bytes())
        except (OSError, ProtocolViolation):
            return None
        intact = all(
            (directory / file.path).is_file() and (directory / file.path).stat().st_size == file.size_bytes
            for file in manifest.light_files
        )
        if digest(manifest) != wanted or not intact:
            shutil.rmtree(directory, ignore_errors=True)
            return None
        return HeldModel(manifest, directory)

    def keep(self, manifest: ModelManifest, contents: Mapping[str, bytes]) -> HeldModel:
        """Stores `contents`, the light files of `manifest` by path; all of them become visible at once.

        Raises ProtocolViolation when one is missing or differs from the manifest, ModelError when they cannot be written.
        """
        check_light(manifest)
        for file in manifest.light_files:
            content = contents.get(file.path)
            if content is None or len(content) != file.size_bytes:
                raise ProtocolViolation(f"a host sent {file.path} of another size than the manifest says")
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise ProtocolViolation(f"a host sent a {file.path} that differs from the manifest")
        target = self._directory / digest(manifest)
        with disk_errors("storing the model's tokenizer", self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self._directory))
            try:
                for file in manifest.light_files:
                    (partial / file.path).write_bytes(contents[file.path])
                (partial / _MANIFEST).write_bytes(encode_manifest(manifest))
                if target.exists():
                    shutil.rmtree(target)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        held = self.find(digest(manifest))
        if held is None:
            raise ModelError(f"{target} vanished while it was written", remedy="ask again")
        return held


def check_light(manifest: ModelManifest) -> None:
    """Raises ProtocolViolation unless the light files have plain names and are not too much together."""
    for file in manifest.light_files:
        check_path(file.path)
    total = sum(file.size_bytes for file in manifest.light_files)
    if total > MAX_LIGHT_BYTES:
        raise ProtocolViolation(
            f"a model with {total} bytes of configuration; the limit is {MAX_LIGHT_BYTES}"
        )
