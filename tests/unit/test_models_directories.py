"""Resolving names, linked snapshots, light files, token counts."""

from __future__ import annotations

import errno
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from edgellm.errors import ModelError, ProtocolViolation
from edgellm.models.light import LightStore
from edgellm.models.linked import without_links
from edgellm.models.manifest import build_manifest, digest
from edgellm.models.resolve import resolve
from edgellm.models.tokens import count_tokens
from edgellm.types.model import ModelFile, ModelManifest
from tests.unit.model_directory import write_model

TINY = Path(__file__).parents[2] / "models" / "tiny"


def snapshot(root: Path) -> Path:
    """A model as Hugging Face's cache holds it: links to blobs."""
    blobs, links = write_model(root / "blobs"), root / "snapshots" / "abc"
    links.mkdir(parents=True)
    for path in blobs.iterdir():
        (links / path.name).symlink_to(Path("../../blobs") / path.name)
    return links


def test_a_directory_is_its_own_model(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "my-model")
    resolved = resolve(str(directory), linked=tmp_path / "linked")
    assert (resolved.name, resolved.directory) == ("my-model", directory)
    assert not (tmp_path / "linked").exists()


def test_links_out_of_the_directory_become_hard_links(tmp_path: Path) -> None:
    links = snapshot(tmp_path)
    resolved = resolve(str(links), linked=tmp_path / "linked")
    assert resolved.directory.parent == tmp_path / "linked"
    files = {path.name: path for path in resolved.directory.iterdir()}
    assert set(files) == {"config.json", "tokenizer_config.json", "model.safetensors"}
    for name, path in files.items():
        assert not path.is_symlink()
        assert path.samefile(tmp_path / "blobs" / name)
    assert build_manifest(resolved.directory, None) == build_manifest(tmp_path / "blobs", None)


def test_a_linked_directory_is_made_again_only_when_the_model_changed(tmp_path: Path) -> None:
    links = snapshot(tmp_path)
    first = without_links(links, tmp_path / "linked")
    inode = first.stat().st_ino
    assert without_links(links, tmp_path / "linked").stat().st_ino == inode
    (tmp_path / "blobs" / "config.json").unlink()
    (tmp_path / "blobs" / "config.json").write_text("{}")
    again = without_links(links, tmp_path / "linked")
    assert (again / "config.json").read_text() == "{}"
    assert [path.name for path in (tmp_path / "linked").iterdir()] == [first.name]


def test_a_model_on_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(ModelError, match="cannot be linked") as caught:
        resolve(str(snapshot(tmp_path)), linked=tmp_path / "linked")
    assert "EDGELLM_HOME" in caught.value.remedy
    assert list((tmp_path / "linked").iterdir()) == []


@pytest.mark.parametrize(
    "model", ["no-such-directory", "a/b/c", "../x", "./x/y", "/nowhere", "~nobody/x/y", ""]
)
def test_neither_directory_nor_id(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        resolve(model, linked=tmp_path / "linked")
    assert caught.value.remedy


class Hub:
    """huggingface_hub with scripted answers: what it lists, and what the download does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        from huggingface_hub import errors

        self.errors = errors
        self.sizes: dict[str, int] = {"config.json": 10, "model.safetensors": 100}
        self.listing_error: Exception | None = None
        self.download_error: Exception | None = None
        self.snapshot: Path | None = None
        self.asked: dict[str, Any] = {}
        module = ModuleType("huggingface_hub")
        module.constants = SimpleNamespace(HF_HUB_CACHE=str(cache))  # type: ignore[attr-defined]
        module.HfApi = lambda: self  # type: ignore[attr-defined]
        module.snapshot_download = self._download  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)

    def error(self, name: str) -> Exception:
        kind: type[Exception] = getattr(self.errors, name)
        made = kind.__new__(kind)
        made.args = ("first line\nsecond line",)
        return made

    def model_info(self, model: str, *, files_metadata: bool, timeout: float) -> SimpleNamespace:
        if self.listing_error:
            raise self.listing_error
        entries = [SimpleNamespace(rfilename=name, size=size) for name, size in self.sizes.items()]
        return SimpleNamespace(siblings=entries)

    def _download(self, model: str, **asked: Any) -> str:
        self.asked = asked
        if self.download_error:
            raise self.download_error
        assert self.snapshot is not None
        return str(self.snapshot)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    return Hub(monkeypatch, tmp_path / "hub")


def test_an_id_is_downloaded_and_keeps_its_name(hub: Hub, tmp_path: Path) -> None:
    hub.snapshot = snapshot(tmp_path)
    resolved = resolve("org/model", linked=tmp_path / "linked")
    assert resolved.name == "org/model"
    assert build_manifest(resolved.directory, None).files
    assert "*.safetensors" in hub.asked["allow_patterns"]


def test_an_unreachable_hub_leaves_what_its_cache_holds(hub: Hub, tmp_path: Path) -> None:
    hub.listing_error = ConnectionError("no network")
    hub.snapshot = snapshot(tmp_path)
    assert resolve("org/model", linked=tmp_path / "linked").name == "org/model"


@pytest.mark.parametrize(
    ("kind", "said", "remedy"),
    [
        ("GatedRepoError", "is gated", "hf auth login"),
        ("RepositoryNotFoundError", "has no model of that name", "check the name"),
        ("LocalEntryNotFoundError", "cannot be reached", "check the network"),
        ("HfHubHTTPError", "refused the download of org/model: first line$", "later"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, tmp_path: Path, kind: str, said: str, remedy: str) -> None:
    hub.download_error = hub.error(kind)
    with pytest.raises(ModelError, match=said) as caught:
        resolve("org/model", linked=tmp_path / "linked")
    assert remedy in caught.value.remedy


def test_a_download_that_breaks_off(hub: Hub, tmp_path: Path) -> None:
    hub.download_error = RuntimeError("peer closed connection")
    with pytest.raises(ModelError, match="broke off: peer closed connection"):
        resolve("org/model", linked=tmp_path / "linked")


def test_a_model_larger_than_the_disk_is_not_begun(hub: Hub, tmp_path: Path) -> None:
    hub.sizes = {"model.safetensors": 1 << 60, "original/copy.safetensors": 1 << 61}
    with pytest.raises(ModelError, match=r"too full: 1024 PiB needed, .* free"):
        resolve("org/model", linked=tmp_path / "linked")
    assert hub.asked == {}


def test_a_disk_that_fills_up_during_the_download(hub: Hub, tmp_path: Path) -> None:
    failure = RuntimeError("a thread failed")
    failure.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    hub.download_error = failure
    with pytest.raises(ModelError, match=r"downloading org/model failed: the disk .* is too full"):
        resolve("org/model", linked=tmp_path / "linked")


def light_files(directory: Path) -> tuple[ModelManifest, dict[str, bytes]]:
    built = build_manifest(directory, None)
    return built, {file.path: (directory / file.path).read_bytes() for file in built.light_files}


def test_light_files_appear_whole(tmp_path: Path) -> None:
    built, contents = light_files(write_model(tmp_path / "m"))
    store = LightStore(tmp_path / "store")
    assert store.find(digest(built)) is None
    held = store.keep(built, contents)
    assert held == store.find(digest(built))
    assert held.manifest == built
    assert {path.name for path in held.directory.iterdir() if not path.name.startswith(".")} == set(contents)
    assert store.keep(built, contents) == held
    assert [path.name for path in (tmp_path / "store").iterdir()] == [digest(built)]


def test_light_files_that_differ_leave_nothing(tmp_path: Path) -> None:
    built, contents = light_files(write_model(tmp_path / "m"))
    store = LightStore(tmp_path / "store")
    changed = contents["config.json"].replace(b"Llama", b"Gemma")
    for bad in ({**contents, "config.json": changed}, {**contents, "config.json": b""}, {}):
        with pytest.raises(ProtocolViolation, match=r"config\.json"):
            store.keep(built, bad)
    assert not (tmp_path / "store").exists()


def test_a_manifest_with_paths_elsewhere_is_not_stored(tmp_path: Path) -> None:
    built, contents = light_files(write_model(tmp_path / "m"))
    for path in ("../evil", "/tmp/evil", "a/../../evil"):
        evil = ModelFile(path, 4, hashlib.sha256(b"evil").hexdigest())
        with pytest.raises(ProtocolViolation, match="plain file name"):
            LightStore(tmp_path / "store").keep(replace(built, files=(evil,)), contents | {path: b"evil"})
    assert not (tmp_path / "evil").exists()


def test_a_damaged_entry_is_not_used_and_is_replaced(tmp_path: Path) -> None:
    built, contents = light_files(write_model(tmp_path / "m"))
    store = LightStore(tmp_path / "store")
    path = store.keep(built, contents).directory / "config.json"
    path.write_bytes(contents["config.json"].replace(b"Llama", b"Gemma"))
    assert store.find(digest(built)) is None
    assert (store.keep(built, contents).directory / "config.json").read_bytes() == contents["config.json"]


@pytest.mark.parametrize("wanted", ["", ".", "..", "../m", "A" * 64, "a" * 63])
def test_a_digest_that_is_none_finds_nothing(tmp_path: Path, wanted: str) -> None:
    write_model(tmp_path / "m")
    assert LightStore(tmp_path / "store").find(wanted) is None


def test_a_full_disk_while_storing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, contents = light_files(write_model(tmp_path / "m"))

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ModelError, match=r"storing the model's tokenizer failed: .* too full"):
        LightStore(tmp_path / "store").keep(built, contents)
    assert list((tmp_path / "store").iterdir()) == []


def test_tokens_are_counted_with_the_models_own_tokenizer(tmp_path: Path) -> None:
    one, two = (
        count_tokens(TINY, "Alice"),
        count_tokens(TINY, "Alice was beginning to get very tired of sitting"),
    )
    assert one is not None
    assert two is not None
    assert 0 < one < two
    assert count_tokens(tmp_path, "Alice") is None
    (tmp_path / "tokenizer.json").write_text("{")
    assert count_tokens(tmp_path, "Alice") is None
