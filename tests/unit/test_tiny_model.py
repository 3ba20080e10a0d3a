"""The model in models/tiny is whole, small and self-consistent, as far as can be told without an engine."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

TINY = Path(__file__).parents[2] / "models" / "tiny"
MAX_TOTAL_BYTES = 4_000_000
BFLOAT16_BYTES = 2


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((TINY / "config.json").read_text())
    return settings


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    """The entries of the safetensors header, checked against the file's length."""
    raw = (TINY / "model.safetensors").read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", raw)
    entries: dict[str, Any] = json.loads(raw[8 : 8 + header_bytes])
    entries.pop("__metadata__", None)
    assert max(entry["data_offsets"][1] for entry in entries.values()) == len(raw) - 8 - header_bytes
    return entries


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


def expected_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    layer = {
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
        "self_attn.q_proj": [queries, hidden],
        "self_attn.k_proj": [keys, hidden],
        "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, queries],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
    }
    shapes = {
        f"model.layers.{index}.{name}.weight": shape
        for index in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    return shapes | {
        "model.embed_tokens.weight": [config["vocab_size"], hidden],
        "model.norm.weight": [hidden],
    }


def test_is_small_enough_for_the_repository() -> None:
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= MAX_TOTAL_BYTES


def test_is_a_llama_that_splits_over_four_ranks_and_uneven_stages(config: dict[str, Any]) -> None:
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_attention_heads"] % 4 == config["num_key_value_heads"] % 4 == 0
    assert config["num_hidden_layers"] >= 6
    assert config["num_hidden_layers"] % 3 != 0
    assert config["tie_word_embeddings"] is True


def test_weights_match_the_config(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    assert {name: entry["shape"] for name, entry in tensors.items()} == expected_shapes(config)
    for entry in tensors.values():
        begin, end = entry["data_offsets"]
        assert entry["dtype"] == "BF16"
        assert end - begin == math.prod(entry["shape"]) * BFLOAT16_BYTES


def test_tokenizer_matches_the_config(config: dict[str, Any], tokenizer: Tokenizer) -> None:
    settings = json.loads((TINY / "tokenizer_config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert tokenizer.token_to_id(settings["eos_token"]) == config["eos_token_id"]
    assert settings["model_max_length"] == config["max_position_embeddings"]


@pytest.mark.parametrize(
    "text",
    [
        "Why is the sky blue?",
        "  two  spaces,\ttabs\r\nand lines\n\n",
        "naïve Füße — 日本語 العربية 🙂👩‍👩‍👧",
        "".join(map(chr, range(0x100))),
        "",
    ],
)
def test_tokenizer_gives_every_text_back_whole(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokenizer_compresses_prose(tokenizer: Tokenizer) -> None:
    text = "When an exception is raised, the interpreter looks for a handler in the calling function."
    assert len(tokenizer.encode(text).ids) < len(text) / 2
