"""A model of a size that is worth spreading: random weights, the small model's tokenizer.

python -m benchmarks.large_model DIRECTORY
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

SMALL = Path(__file__).parents[1] / "models" / "tiny"
LAYERS, HIDDEN, INTERMEDIATE, HEADS = 16, 1024, 2816, 16
"""205 million parameters, 411 MB."""


def config() -> dict[str, Any]:
    """The small model's, larger."""
    small: dict[str, Any] = json.loads((SMALL / "config.json").read_text())
    return small | {
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
    }


def shapes(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every weight of a Llama with tied embeddings."""
    hidden, intermediate = settings["hidden_size"], settings["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (settings["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found[f"{prefix}.self_attn.{name}.weight"] = (hidden, hidden)
        for name in ("gate_proj", "up_proj"):
            found[f"{prefix}.mlp.{name}.weight"] = (intermediate, hidden)
        found[f"{prefix}.mlp.down_proj.weight"] = (hidden, intermediate)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}.{name}.weight"] = (hidden,)
    return found


def main() -> None:
    """Write the model; the same each time."""
    import torch
    from safetensors.torch import save_file

    directory = Path(sys.argv[1])
    directory.mkdir()
    for path in SMALL.iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "model.safetensors.index.json":
            shutil.copy(path, directory)
    settings = config()
    (directory / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    weights = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else torch.randn(shape, dtype=torch.bfloat16) * 0.05
        for name, shape in shapes(settings).items()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
