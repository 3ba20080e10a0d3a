"""The manifest of a model: its files with their hashes, its shape, and the digest that names all of it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import msgspec

from edgellm.errors import ModelError, ProtocolViolation
from edgellm.models.disk import disk_errors, write_atomically
from edgellm.models.files import light_paths, weight_paths
from edgellm.models.shape import MAX_LAYERS, read_shape
from edgellm.types.model import ModelFile, ModelManifest

MAX_MANIFEST_BYTES = 1 << 20
"""A file takes about 150 bytes, so this is room for more than 5,000."""

MAX_LIGHT_BYTES = 64 << 20
"""All configuration and tokenizer files of a model together; the largest tokenizers have about 20 MB."""

_FORMAT = "edgellm-manifest-1"
_CACHED_FROM_BYTES = 8 << 20
_MAX_COUNT = 1 << 53
"""Above, JSON readers of other languages lose digits."""

_Key = tuple[str, int, int, int]


def build_manifest(directory: Path, cache: Path | None) -> ModelManifest:
    """The manifest of the model in `directory`. Reads every file once; with a `cache` file, large ones only when changed.

    Takes about a second per GiB where nothing is cached. Raises ModelError when the directory is no complete model, or
    a file changes meanwhile.
    """
    shape = read_shape(directory)
    known = _read_cache(cache)
    hashes: dict[_Key, str] = {}
    files = []
    with disk_errors(f"reading {directory}", directory):
        for path in sorted([*light_paths(directory), *weight_paths(directory)]):
            key = _key(path)
            sha256 = known.get(key) or _hash(path, key)
            if key[1] >= _CACHED_FROM_BYTES:
                hashes[key] = sha256
            files.append(ModelFile(path.name, key[1], sha256))
    if cache is not None and not hashes.items() <= known.items():
        with disk_errors("storing model hashes", cache.parent):
            _write_cache(cache, known | hashes)
    return ModelManifest(tuple(files), shape)


def encode_manifest(manifest: ModelManifest) -> bytes:
    """The canonical bytes: ASCII JSON with sorted keys and no spaces. Equal manifests give equal bytes."""
    document = {"format": _FORMAT, **asdict(manifest)}
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def digest(manifest: ModelManifest) -> str:
    """SHA-256 of the canonical bytes, hex. Two models with equal digests have equal files, bit for bit."""
    return hashlib.sha256(encode_manifest(manifest)).hexdigest()


def decode_manifest(data: bytes) -> ModelManifest:
    """The manifest that a peer sent. Raises ProtocolViolation unless `data` is the canonical encoding of a possible one."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ProtocolViolation(
            f"a model manifest of {len(data)} bytes is over the limit of {MAX_MANIFEST_BYTES}"
        )
    try:
        manifest = msgspec.json.decode(data, type=ModelManifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(f"a peer sent something that is no model manifest: {error}") from error
    check_manifest(manifest)
    if encode_manifest(manifest) != data:
        raise ProtocolViolation("a peer sent a model manifest that is not in canonical form")
    return manifest


def check_manifest(manifest: ModelManifest) -> None:
    """Raises ProtocolViolation when a path, size, hash or count is impossible, or the light files are too large."""
    paths = [file.path for file in manifest.files]
    if paths != sorted(set(paths)):
        raise ProtocolViolation("a peer's model manifest has unsorted or repeated files")
    for file in manifest.files:
        _check_path(file.path)
        is_hash = len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef")
        if not is_hash or not 0 <= file.size_bytes < _MAX_COUNT:
            raise ProtocolViolation(f"a peer's model manifest has an impossible size or hash for {file.path}")
    light_bytes = sum(file.size_bytes for file in manifest.light_files)
    if light_bytes > MAX_LIGHT_BYTES:
        raise ProtocolViolation(
            f"a peer's model manifest has {light_bytes} bytes of configuration; the limit is {MAX_LIGHT_BYTES}"
        )
    shape = manifest.shape
    sizes = (*shape.layer_bytes, shape.embedding_bytes, shape.head_bytes)
    counts = (shape.attention_heads, shape.kv_heads, shape.head_dim, shape.element_bytes, shape.max_context)
    if not 0 < shape.layers <= MAX_LAYERS or not all(0 <= size < _MAX_COUNT for size in sizes):
        raise ProtocolViolation("a peer's model manifest has impossible layers")
    if not all(0 < count < 1 << 31 for count in counts):
        raise ProtocolViolation("a peer's model manifest has impossible heads or context")


def _check_path(path: str) -> None:
    """Raises ProtocolViolation unless `path` is a plain file name: no directory, nothing hidden, nothing odd."""
    allowed = path.isascii() and path.isprintable() and 0 < len(path) <= 200
    if not allowed or path.startswith(".") or any(character in path for character in "/\\:"):
        raise ProtocolViolation(
            f"a peer's model manifest has a file {path[:80]!r}, which is no plain file name"
        )


def _key(path: Path) -> _Key:
    stat = path.stat()
    return (os.path.realpath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _hash(path: Path, key: _Key) -> str:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if _key(path) != key:
        raise ModelError(
            f"{path} changed while it was read", remedy="wait until it is written, then try again"
        )
    return sha256


def _read_cache(cache: Path | None) -> dict[_Key, str]:
    try:
        entries = msgspec.json.decode(cache.read_bytes(), type=list[tuple[_Key, str]]) if cache else []
    except (OSError, ValueError):
        # A cache that is lost or broken costs time, nothing else.
        return {}
    return dict(entries)


def _write_cache(cache: Path, hashes: dict[_Key, str]) -> None:
    current = {key: sha256 for key, sha256 in hashes.items() if Path(key[0]).exists()}
    write_atomically(cache, msgspec.json.encode(sorted(current.items())))
