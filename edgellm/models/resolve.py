"""From what a user calls a model to its directory, downloaded from Hugging Face if need be."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from edgellm.errors import ModelError
from edgellm.models.disk import disk_errors, disk_full, is_disk_full
from edgellm.models.files import LIGHT_PATTERNS, WEIGHT_PATTERN
from edgellm.models.linked import without_links
from edgellm.paths import default_paths
from edgellm.types.quantity import format_bytes

_PATTERNS = [*LIGHT_PATTERNS, WEIGHT_PATTERN]
_IGNORED = ["*/*", "consolidated*"]
"""Copies of the weights in other layouts."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_HUB_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    name: str
    """What it is called in the swarm: the Hugging Face id, or the directory's name."""
    directory: Path
    """Holds all files of the model itself, so that a cell that sees nothing else can load it."""


def resolve(model: str, *, linked: Path | None = None) -> ResolvedModel:
    """The directory of `model`: itself where it is one, else its snapshot from Hugging Face (with a progress bar on stderr).

    Where files of it are links, they are linked below `linked` (the user's cache, unless given) and that is the
    directory. Raises ModelError when there is no such directory or id, when it is gated, when the hub cannot be reached
    and its cache lacks the model, when the disk is full, or when files of the model are missing.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        directory = directory.resolve()
        name = directory.name
    elif _HUB_ID.fullmatch(model):
        directory, name = _download(model), model
    else:
        raise ModelError(
            f"there is no directory {model!r}, and it is no Hugging Face id either",
            remedy="give a directory that holds config.json and *.safetensors, or an id like Qwen/Qwen3-8B",
        )
    return ResolvedModel(name, without_links(directory, linked or default_paths().cache / "linked"))


def _download(model: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    cache = Path(constants.HF_HUB_CACHE)
    try:
        _require_space(model, cache)
        return Path(snapshot_download(model, allow_patterns=_PATTERNS, ignore_patterns=_IGNORED))
    except ModelError:
        raise
    except GatedRepoError as error:
        raise ModelError(
            f"{model} is gated: its owner must grant you access",
            remedy=f"accept its terms at https://huggingface.co/{model}, then run: hf auth login",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no directory {model!r}, and Hugging Face has no model of that name that you may see",
            remedy="check the name; for a private model run: hf auth login",
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"there is no directory {model!r}, and Hugging Face cannot be reached to download a model of that name",
            remedy="check the network, or give a directory that holds the model",
        ) from error
    except HfHubHTTPError as error:
        raise ModelError(
            f"Hugging Face refused the download of {model}: {_first_line(error)}", remedy="try again later"
        ) from error
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(f"downloading {model}", cache) from error
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            with disk_errors(f"downloading {model}", cache):
                raise
        # The hub's HTTP library, and with it these errors, differs between its releases.
        raise ModelError(
            f"downloading {model} broke off: {_first_line(error)}",
            remedy="check the network and run it again: it goes on where it stopped",
        ) from error


def _require_space(model: str, cache: Path) -> None:
    """Raises ModelError when the disk has less free than is left to download. Nothing where the hub cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        entries = HfApi().model_info(model, files_metadata=True, timeout=_HUB_TIMEOUT_S).siblings or []
    except (GatedRepoError, RepositoryNotFoundError):
        raise
    except Exception:  # noqa: BLE001 - see above; the download itself meets the same error and says so
        return
    wanted_bytes = sum(
        entry.size or 0
        for entry in entries
        if _matches(entry.rfilename, _PATTERNS) and not _matches(entry.rfilename, _IGNORED)
    )
    blobs = cache / f"models--{model.replace('/', '--')}" / "blobs"
    held_bytes = sum(path.stat().st_size for path in blobs.glob("*") if path.is_file())
    existing = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if wanted_bytes - held_bytes > free_bytes:
        raise disk_full(
            f"downloading {model}",
            cache,
            f": {format_bytes(wanted_bytes - held_bytes)} needed, {format_bytes(free_bytes)} free",
        )


def _matches(path: str, patterns: list[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
