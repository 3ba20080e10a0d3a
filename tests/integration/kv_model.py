"""A made model whose answers depend strongly on its KV cache, so that a wrong one shows in the first token."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

SMALL = Path(__file__).parents[2] / "models" / "tiny"
VOCABULARY = 1280
KV_HEADS = 4
# Of the initial weights, chosen so that attention is sharp and the context reaches the logits.
_SCALES = {"q_proj": 0.06, "k_proj": 0.06, "embed_tokens": 0.3, "lm_head": 0.06}


def make_model(
    directory: Path, *, layers: int = 6, hidden: int = 256, head_dim: int = 32, heads: int = 8
) -> Path:
    """Writes it there, the same each time; with the small model's tokenizer and a context of 4,096 tokens."""
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    for path in SMALL.iterdir():
        if path.suffix == ".json" and path.name != "config.json":
            shutil.copy(path, directory)
    intermediate = hidden * 11 // 4
    settings = json.loads((SMALL / "config.json").read_text()) | {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": KV_HEADS,
        "head_dim": head_dim,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(settings))
    kv, queries = KV_HEADS * head_dim, heads * head_dim
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "lm_head.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.q_proj.weight": (queries, hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, queries),
            f"{prefix}.mlp.gate_proj.weight": (intermediate, hidden),
            f"{prefix}.mlp.up_proj.weight": (intermediate, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, intermediate),
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
        }
    torch.manual_seed(7)
    # Sums grow with the width, so weights shrink with it.
    width = (1024 / hidden) ** 0.5
    weights = {}
    for name, shape in shapes.items():
        scale = next((scale for part, scale in _SCALES.items() if part in name), 0.03) * width
        made = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * scale
        weights[name] = made.to(torch.bfloat16)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def prompt(seed: int, tokens: int) -> list[int]:
    """Token ids without meaning, the same for the same seed."""
    numbers = random.Random(seed)
    return [numbers.randrange(5, VOCABULARY) for _ in range(tokens)]
