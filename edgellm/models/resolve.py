"""From what a user calls a model to its directory, downloaded from Hugging Face if need be."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from edgellm.errors import ModelError
from edgellm.models.disk import disk_errors, disk_full

PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
)
"""What vLLM reads of a repository; weights in other formats stay where they are."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    name: str
    """What it is called in the swarm: the Hugging Face id, or the directory's name."""
    directory: Path


def resolve(model: str) -> ResolvedModel:
    """The directory of `model`: itself where it is one, else its snapshot from Hugging Face (with a progress bar on stderr).

    Raises ModelError when there is no such directory or id, when it is gated, when the hub cannot be reached and the model
    is not in its cache, or when the disk is full.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        return ResolvedModel(directory.resolve().name, directory.resolve())
    if not _HUB_ID.fullmatch(model):
        raise ModelError(
            f"there is no directory {model!r}, and it is no Hugging Face id either",
            remedy="give a directory that holds config.json and *.safetensors, or an id like Qwen/Qwen3-8B",
        )
    return ResolvedModel(model, _download(model))


def _download(model: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    cache = Path(os.environ.get("HF_HUB_CACHE", constants.HF_HUB_CACHE))
    try:
        _require_space(model, cache)
    except ModelError:
        raise
    except GatedRepoError as error:
        raise ModelError(
            f"{model} is gated: its owner must grant you access",
            remedy=f"accept its terms at huggingface.co/{model}, then run: hf auth login",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"Hugging Face has no model {model!r} that you may see",
            remedy="check the id, or run: hf auth login",
        ) from error
    except Exception:  # noqa: BLE001 - the hub's HTTP library, and so its errors, changes between its releases
        # Not reachable now: its cache may hold the model all the same.
        return _from_cache(model)
    with disk_errors(f"downloading {model}", cache):
        try:
            return Path(snapshot_download(model, allow_patterns=list(PATTERNS)))
        except OSError:
            raise
        except Exception as error:
            raise ModelError(
                f"downloading {model} broke off: {error}", remedy="run it again: it goes on where it stopped"
            ) from error


def _from_cache(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(PATTERNS), local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"Hugging Face cannot be reached, and {model} is not in its cache on this machine",
            remedy="check the network, or give a directory that holds the model",
        ) from error


def _require_space(model: str, cache: Path) -> None:
    """Raises ModelError when the files of `model` are more than the disk has free. Raises what the hub raises."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(model, files_metadata=True, timeout=15)
    if (cache / f"models--{model.replace('/', '--')}").exists():
        return
    needed = sum(
        entry.size or 0
        for entry in info.siblings or ()
        if any(fnmatch(entry.rfilename, pattern) for pattern in PATTERNS)
    )
    existing = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise disk_full(
            f"downloading {model}", cache, f": {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        )
