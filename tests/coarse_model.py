"""A copy of a model with rounded weights: what a host could lend that has less memory than its model needs."""

from __future__ import annotations

import shutil
from pathlib import Path


def coarse_copy(model: Path, directory: Path, *, bits: int) -> Path:
    """A copy in which the layers' matrices have so many bits a weight, with a scale for each row."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, directory)
    file = directory / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if weight.ndim == 2 and ".layers." in name:
            exact = weight.float()
            scale = exact.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
            weights[name] = ((exact / scale).round() * scale).to(weight.dtype).contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    return directory
