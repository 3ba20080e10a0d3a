"""ModelShape from config.json and safetensors headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import ModelError
from edgellm.models.shape import read_header, read_shape
from edgellm.types.model import ModelShape
from tests.unit.model_directory import CONFIG, TENSORS, write_model, write_weights

TINY = Path(__file__).parents[2] / "models" / "tiny"


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in CONFIG.items() if name not in names}


def test_weights_are_counted_by_layer(tmp_path: Path) -> None:
    assert read_shape(write_model(tmp_path)) == ModelShape(
        architecture="LlamaForCausalLM",
        layer_bytes=(700, 710),
        embedding_bytes=1000,
        head_bytes=1064,
        attention_heads=4,
        kv_heads=2,
        head_dim=16,
        element_bytes=2,
        max_context=512,
        tied_embeddings=False,
    )


def test_the_small_model_in_the_repository() -> None:
    shape = read_shape(TINY)
    vocabulary_bytes = 1280 * 128 * 2
    # Attention 4 * 128², MLP 3 * 128 * 384, two norms of 128; two bytes each.
    assert shape.layer_bytes == ((4 * 128**2 + 3 * 128 * 384 + 2 * 128) * 2,) * 8
    assert (shape.embedding_bytes, shape.head_bytes) == (vocabulary_bytes, 128 * 2)
    assert shape.tied_embeddings
    assert shape.kv_bytes_per_token_and_layer == 2 * 4 * 32 * 2


@pytest.mark.parametrize("said", [True, None])
def test_an_output_projection_that_is_tied_counts_once(tmp_path: Path, said: bool | None) -> None:
    """Whether config.json says so or the file simply has no lm_head."""
    tensors = dict(TENSORS)
    if said is None:
        del tensors["lm_head.weight"]
    shape = read_shape(write_model(tmp_path, config=CONFIG | {"tie_word_embeddings": said}, tensors=tensors))
    assert shape.tied_embeddings
    assert shape.head_bytes == 64
    assert shape.weights_bytes == 1000 + 700 + 710 + 64


def test_defaults_of_old_configurations(tmp_path: Path) -> None:
    config = without("num_key_value_heads", "torch_dtype") | {"dtype": "float32"}
    shape = read_shape(write_model(tmp_path, config=config))
    assert (shape.kv_heads, shape.head_dim, shape.element_bytes) == (4, 16, 4)


def test_the_stored_type_where_none_is_named(tmp_path: Path) -> None:
    directory = write_model(tmp_path, config=without("torch_dtype"))
    write_weights(directory / "model.safetensors", TENSORS, dtype="F32")
    assert read_shape(directory).element_bytes == 4


def test_head_dim_of_its_own(tmp_path: Path) -> None:
    assert read_shape(write_model(tmp_path, config=CONFIG | {"head_dim": 128})).head_dim == 128


def test_gpt2_names(tmp_path: Path) -> None:
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 1,
        "n_positions": 1024,
    }
    tensors = {"wte.weight": 500, "wpe.weight": 100, "h.0.attn.c_attn.weight": 300, "ln_f.weight": 10}
    shape = read_shape(write_model(tmp_path, config=config, tensors=tensors))
    assert (shape.layer_bytes, shape.embedding_bytes, shape.head_bytes) == ((300,), 600, 10)
    assert (shape.tied_embeddings, shape.max_context) == (True, 1024)


def test_language_part_of_a_multimodal_model(tmp_path: Path) -> None:
    config = {"architectures": ["X"], "vision_config": {"num_hidden_layers": 9}, "text_config": CONFIG}
    tensors = TENSORS | {"visual.blocks.0.attn.weight": 5000}
    shape = read_shape(write_model(tmp_path, config=config, tensors=tensors))
    assert (shape.layer_bytes, shape.embedding_bytes) == ((700, 710), 6000)


def test_prediction_layers_after_the_last_do_not_count(tmp_path: Path) -> None:
    shape = read_shape(write_model(tmp_path, tensors=TENSORS | {"model.layers.2.mlp.weight": 9999}))
    assert shape.layer_bytes == (700, 710)


def test_latent_attention_caches_one_vector_for_all_heads(tmp_path: Path) -> None:
    shape = read_shape(write_model(tmp_path, config=CONFIG | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}))
    assert shape.kv_bytes_per_token_and_layer == (512 + 64) * 2


def test_sharded_weights_as_the_index_names_them(tmp_path: Path) -> None:
    directory = write_model(tmp_path)
    names = list(TENSORS)
    (directory / "model.safetensors").rename(directory / "consolidated.safetensors")
    write_weights(directory / "a.safetensors", {name: TENSORS[name] for name in names[:3]})
    write_weights(directory / "b.safetensors", {name: TENSORS[name] for name in names[3:]})
    weight_map = {name: "a.safetensors" if name in names[:3] else "b.safetensors" for name in names}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert read_shape(directory).layer_bytes == (700, 710)
    (directory / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"incomplete: b\.safetensors is missing"):
        read_shape(directory)
    index.write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    with pytest.raises(ModelError, match="outside"):
        read_shape(directory)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (without("architectures"), "architectures"),
        (without("num_hidden_layers"), "num_hidden_layers"),
        (without("max_position_embeddings"), "max_position_embeddings"),
        (CONFIG | {"num_hidden_layers": "2"}, "positive integer"),
        (CONFIG | {"num_hidden_layers": True}, "positive integer"),
        (CONFIG | {"num_attention_heads": 0}, "positive integer"),
        (CONFIG | {"num_hidden_layers": 3}, "no weights for layer 2"),
        (CONFIG | {"num_hidden_layers": 10**9}, "the limit is"),
    ],
)
def test_impossible_configurations(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        read_shape(write_model(tmp_path, config=config))
    assert str(tmp_path) in str(caught.value)
    assert caught.value.remedy


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model directory: it has no config\.json"):
        read_shape(tmp_path)
    directory = write_model(tmp_path)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        read_shape(directory)
    for content in ("{", "[]", "[" * 100_000):
        (directory / "config.json").write_text(content)
        with pytest.raises(ModelError, match=r"config\.json"):
            read_shape(directory)


def header_file(directory: Path, header: bytes, *, length: int | None = None, data: bytes = b"") -> Path:
    path = directory / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"[1]",
        b"{",
        b'{"a": 1}',
        b'{"a": {"dtype": "BF16", "data_offsets": [0]}}',
        b'{"a": {"dtype": "BF16", "data_offsets": [4, 2]}}',
        b'{"a": {"dtype": "BF16", "data_offsets": [-2, 2]}}',
        b'{"a": {"dtype": 7, "data_offsets": [0, 2]}}',
        b'{"a": {"dtype": "BF16", "data_offsets": [0, 9000000]}}',
    ],
)
def test_broken_headers(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(ModelError, match=r"x\.safetensors is broken"):
        list(read_header(header_file(tmp_path, header, data=bytes(8))))


@pytest.mark.parametrize("length", [0, 1, 50, 1 << 40, (1 << 64) - 1])
def test_a_header_length_that_lies_is_not_read(tmp_path: Path, length: int) -> None:
    with pytest.raises(ModelError, match="is broken"):
        list(read_header(header_file(tmp_path, b"{}", length=length)))


def test_a_download_that_broke_off(tmp_path: Path) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="ends 100 bytes or more too early") as caught:
        read_shape(tmp_path)
    assert "delete" in caught.value.remedy


@given(content=st.binary(max_size=200))
def test_random_bytes_are_a_model_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="broken"):
        list(read_header(path))
