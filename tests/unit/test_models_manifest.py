"""Manifest, digest, and what strangers may send as one."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import ModelError, ProtocolViolation
from edgellm.models import manifest as manifest_module
from edgellm.models.manifest import (
    MAX_LIGHT_BYTES,
    MAX_MANIFEST_BYTES,
    build_manifest,
    decode_manifest,
    digest,
    encode_manifest,
)
from edgellm.types.model import ModelFile, ModelManifest, ModelShape
from tests.unit.model_directory import write_model

SHAPE = ModelShape("LlamaForCausalLM", (10, 20), 5, 6, 4, 2, 16, 2, 512)
MANIFEST = ModelManifest(
    (ModelFile("config.json", 3, "0" * 64), ModelFile("model.safetensors", 99, "f" * 64)), SHAPE
)


def test_the_files_of_the_model_and_no_others(tmp_path: Path) -> None:
    built = build_manifest(write_model(tmp_path), None)
    assert [file.path for file in built.files] == [
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
    ]
    for file in built.files:
        content = (tmp_path / file.path).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert [file.path for file in built.light_files] == ["config.json", "tokenizer_config.json"]


def test_the_digest_of_a_known_manifest_never_changes() -> None:
    """Peers of different releases must agree on it: a change is a change of the wire format."""
    assert digest(MANIFEST) == "d14478c64c11f739665960850c0c2e14115a25adcbb1ac95001242915714572d"


def test_equal_directories_have_equal_digests_and_any_change_shows(tmp_path: Path) -> None:
    one, other = write_model(tmp_path / "one"), write_model(tmp_path / "other")
    (other / "README.md").write_text("something else")
    assert digest(build_manifest(one, None)) == digest(build_manifest(other, None))
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert digest(build_manifest(one, None)) != digest(build_manifest(other, None))


def test_large_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "_CACHED_FROM_BYTES", 1000)
    directory, cache = write_model(tmp_path / "m"), tmp_path / "cache" / "hashes.json"
    first = build_manifest(directory, cache)
    hashed: list[str] = []
    real = manifest_module._hash

    def counted(path: Path, key: Any) -> str:
        hashed.append(path.name)
        return real(path, key)

    monkeypatch.setattr(manifest_module, "_hash", counted)
    assert build_manifest(directory, cache) == first
    assert hashed == ["config.json", "tokenizer_config.json"]
    os.utime(directory / "model.safetensors", ns=(1, 1))
    assert build_manifest(directory, cache) == first
    assert hashed.count("model.safetensors") == 1
    cache.write_bytes(b"\xffgarbage")
    assert build_manifest(directory, cache) == first
    assert hashed.count("model.safetensors") == 2


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "_CACHED_FROM_BYTES", 1)
    directory = write_model(tmp_path / "m")

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(manifest_module, "write_atomically", full)
    with pytest.raises(ModelError, match=r"the disk that holds .* is too full") as caught:
        build_manifest(directory, tmp_path / "hashes.json")
    assert "free some space" in caught.value.remedy


def test_round_trip() -> None:
    assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST


@given(data=st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_manifest(data)


@given(position=st.integers(0, len(encode_manifest(MANIFEST)) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_means_another_manifest(position: int, byte: int) -> None:
    encoded = bytearray(encode_manifest(MANIFEST))
    if encoded[position] == byte:
        return
    encoded[position] = byte
    try:
        decoded = decode_manifest(bytes(encoded))
    except ProtocolViolation:
        return
    assert decoded != MANIFEST
    assert encode_manifest(decoded) == bytes(encoded)


def test_deep_nesting_and_length() -> None:
    with pytest.raises(ProtocolViolation):
        decode_manifest(b"[" * 500_000)
    with pytest.raises(ProtocolViolation):
        decode_manifest(b'{"x":' * 100_000)
    with pytest.raises(ProtocolViolation, match="over the limit"):
        decode_manifest(b" " * (MAX_MANIFEST_BYTES + 1))


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../config.json",
        "/etc/passwd",
        "a/b",
        "a\\b",
        ".bashrc",
        "x\x00",
        "x\n",
        "ü",
        "c:x",
        "x" * 201,
    ],
)
def test_paths_that_lead_elsewhere(path: str) -> None:
    with pytest.raises(ProtocolViolation, match="plain file name"):
        decode_manifest(encode_manifest(replace(MANIFEST, files=(ModelFile(path, 1, "0" * 64),))))


@pytest.mark.parametrize(
    "bad",
    [
        replace(MANIFEST, files=tuple(reversed(MANIFEST.files))),
        replace(MANIFEST, files=(MANIFEST.files[0],) * 2),
        replace(MANIFEST, files=(ModelFile("config.json", -1, "0" * 64),)),
        replace(MANIFEST, files=(ModelFile("config.json", 1 << 60, "0" * 64),)),
        replace(MANIFEST, files=(ModelFile("config.json", MAX_LIGHT_BYTES + 1, "0" * 64),)),
        replace(MANIFEST, files=(ModelFile("config.json", 1, "0" * 63),)),
        replace(MANIFEST, files=(ModelFile("config.json", 1, "F" * 64),)),
        replace(MANIFEST, shape=replace(SHAPE, layer_bytes=())),
        replace(MANIFEST, shape=replace(SHAPE, layer_bytes=(1,) * 5000)),
        replace(MANIFEST, shape=replace(SHAPE, layer_bytes=(-1, 2))),
        replace(MANIFEST, shape=replace(SHAPE, kv_heads=0)),
        replace(MANIFEST, shape=replace(SHAPE, max_context=1 << 40)),
    ],
)
def test_impossible_manifests(bad: ModelManifest) -> None:
    with pytest.raises(ProtocolViolation):
        decode_manifest(encode_manifest(bad))


def test_other_spellings_of_the_same_manifest() -> None:
    document = json.loads(encode_manifest(MANIFEST))
    spellings = [json.dumps(document).encode(), json.dumps(document | {"extra": 1}, sort_keys=True).encode()]
    document["shape"]["kv_heads"] = 2.0
    spellings.append(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
    for spelling in spellings:
        with pytest.raises(ProtocolViolation):
            decode_manifest(spelling)
