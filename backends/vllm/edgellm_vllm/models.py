"""The class of a model, imported in this process."""

from __future__ import annotations

import json
from pathlib import Path

from vllm.model_executor.models.registry import ModelRegistry


def import_model_class(model_path: str) -> None:
    """Imports the class that the directory's config.json names, so that vLLM need not start a process to look at it.

    That process would import all of vLLM again, six seconds of one core; vLLM uses it so that looking at a model
    leaves CUDA untouched in its own process, which a process without devices need not fear. Does nothing for a
    model that vLLM does not know: it says so itself, later and better.
    """
    config = json.loads((Path(model_path) / "config.json").read_text())
    for architecture in config.get("architectures") or ():
        known = ModelRegistry.models.get(architecture)
        if known is not None:
            ModelRegistry.register_model(architecture, known.load_model_cls())
