"""A model of a size that is worth spreading: random weights, the small model's tokenizer.

python -m benchmarks.large_model DIRECTORY [--grouped]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

SMALL = Path(__file__).parents[1] / "models" / "tiny"
LAYERS, HIDDEN, INTERMEDIATE, HEADS = 16, 1024, 2816, 16
"""205 million parameters, 411 MB."""
GROUPED_INTERMEDIATE, GROUPED_KV_HEADS = 3392, 2
"""With eight heads to each KV head, as models of this decade have them: as many parameters, an eighth of the KV cache."""


def config(*, grouped: bool = False) -> dict[str, Any]:
    """The small model's, larger."""
    small: dict[str, Any] = json.loads((SMALL / "config.json").read_text())
    return small | {
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": GROUPED_INTERMEDIATE if grouped else INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPED_KV_HEADS if grouped else HEADS,
        "head_dim": HIDDEN // HEADS,
    }


def shapes(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every weight of a Llama with tied embeddings."""
    hidden, intermediate = settings["hidden_size"], settings["intermediate_size"]
    kv = settings["num_key_value_heads"] * settings["head_dim"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (settings["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "o_proj"):
            found[f"{prefix}.self_attn.{name}.weight"] = (hidden, hidden)
        for name in ("k_proj", "v_proj"):
            found[f"{prefix}.self_attn.{name}.weight"] = (kv, hidden)
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

    parser = argparse.ArgumentParser(prog="benchmarks.large_model", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--grouped", action="store_true", help="few KV heads")
    options = parser.parse_args()
    directory: Path = options.directory
    directory.mkdir()
    for path in SMALL.iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "model.safetensors.index.json":
            shutil.copy(path, directory)
    settings = config(grouped=options.grouped)
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
