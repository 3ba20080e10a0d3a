"""Made-up model directories: true headers, and zeros for weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
TENSORS = {
    "model.embed_tokens.weight": 1000,
    "model.layers.0.self_attn.q_proj.weight": 300,
    "model.layers.0.mlp.up_proj.weight": 400,
    "model.layers.1.self_attn.q_proj.weight": 310,
    "model.layers.1.mlp.up_proj.weight": 400,
    "model.norm.weight": 64,
    "lm_head.weight": 1000,
}


def write_weights(path: Path, sizes: Mapping[str, int], *, dtype: str = "BF16") -> None:
    """A safetensors file with one-dimensional tensors of so many bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, size in sizes.items():
        header[name] = {"dtype": dtype, "shape": [size // 2], "data_offsets": [begin, begin + size]}
        begin += size
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(begin))


def write_model(
    directory: Path, *, config: Mapping[str, object] = CONFIG, tensors: Mapping[str, int] = TENSORS
) -> Path:
    """A complete model of one weight file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    (directory / "README.md").write_text("not part of the model")
    write_weights(directory / "model.safetensors", tensors)
    return directory
