"""Paths that members without a sandbox have in common."""

from __future__ import annotations

from pathlib import Path

from edgellm.cluster.commons import open_commons

CLUSTER = "ab" * 16


def model(directory: Path, *files: str) -> Path:
    directory.mkdir()
    for name in files:
        (directory / name).write_text(name)
    return directory


def test_a_member_finds_its_model_and_leaves_nothing(tmp_path: Path) -> None:
    held = model(tmp_path / "held", "config.json", "model.safetensors")
    with open_commons(CLUSTER, held, tmp_path) as commons:
        assert (commons.model / "config.json").read_text() == "config.json"
        (commons.temporary / "left").write_text("by an engine")
        assert set(commons.environment().values()) == {str(commons.temporary)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held"]


def test_weights_take_the_place_of_a_heads_light_copy_and_stay(tmp_path: Path) -> None:
    light = model(tmp_path / "light", "config.json")
    held = model(tmp_path / "held", "config.json", "model.safetensors")
    with open_commons(CLUSTER, light, tmp_path) as head, open_commons(CLUSTER, held, tmp_path) as worker:
        assert head.model == worker.model
        assert (head.model / "model.safetensors").exists()
    with open_commons(CLUSTER, held, tmp_path), open_commons(CLUSTER, light, tmp_path) as head:
        assert (head.model / "model.safetensors").exists()
