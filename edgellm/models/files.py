"""Which files of a directory are the model, and reading the small ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgellm.errors import ModelError

LIGHT_PATTERNS = (
    "config*.json",
    "generation_config.json",
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.safetensors.index.json",
)
"""What a head needs: configuration, tokenizer, chat template."""

WEIGHT_PATTERN = "*.safetensors"

_MAX_JSON_BYTES = 64 << 20
"""The largest real one is an index of a model with many experts: under 20 MiB."""


def light_paths(directory: Path) -> list[Path]:
    """The small files of the model in `directory`, sorted."""
    found = {path for pattern in LIGHT_PATTERNS for path in directory.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not path.name.endswith(".safetensors"))


def weight_paths(directory: Path) -> list[Path]:
    """The weight files of the model in `directory`, sorted: those that its index names, or all without an index.

    An index keeps out a second copy in another layout, which some repositories carry. Raises ModelError when there are
    none, or when one that the index names is missing.
    """
    indexes = sorted(directory.glob("*.safetensors.index.json"))
    if not indexes:
        paths = sorted(path for path in directory.glob(WEIGHT_PATTERN) if path.is_file())
        if not paths:
            raise ModelError(
                f"{directory} holds no *.safetensors weights",
                remedy="use a model in safetensors format; other formats (GGUF, .bin) cannot be split over hosts",
            )
        return paths
    index = next((path for path in indexes if path.name == "model.safetensors.index.json"), indexes[0])
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map", remedy="download the model again")
    names = {name for name in weight_map.values() if isinstance(name, str)}
    if any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise ModelError(f"{index} names files outside of its directory", remedy="do not use this model")
    missing = sorted(name for name in names if not (directory / name).is_file())
    if missing:
        raise ModelError(
            f"{directory} is incomplete: {missing[0]}"
            + (f" and {len(missing) - 1} more weight files are" if len(missing) > 1 else " is")
            + " missing",
            remedy="download the model again; a complete part is not downloaded twice",
        )
    return [directory / name for name in sorted(names)]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises ModelError when it is missing, too large, or no JSON object."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelError(
                f"{path} is larger than {_MAX_JSON_BYTES} bytes", remedy="download the model again"
            )
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(
            f"{path.parent} is no model directory: it has no {path.name}",
            remedy="give a directory with config.json, tokenizer and *.safetensors files, or a Hugging Face id",
        ) from error
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}", remedy="check its permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no valid JSON: {error}", remedy="download the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object", remedy="download the model again")
    return content
