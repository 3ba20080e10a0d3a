"""The shape of a model: from config.json and the headers of its safetensors files, without loading weights."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import ModelError
from edgellm.models.files import read_json, weight_paths
from edgellm.types.model import ModelShape

_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself (github.com/huggingface/safetensors, "Format")."""

MAX_LAYERS = 4096

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,5})\.")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|wpe|embed_in|embed_positions|word_embeddings|tok_embeddings)\."
)
_OUTPUT = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.")
_OTHER_TOWER = re.compile(
    r"(?:^|\.)(?:visual|vision\w*|image\w*|audio\w*|multi_modal_projector|mm_projector)\."
)

_DTYPE_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
_STORED_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a safetensors header."""

    name: str
    dtype: str
    size_bytes: int


def read_shape(directory: Path) -> ModelShape:
    """The shape of the model in `directory`. Weights are counted as stored.

    Raises ModelError, naming the file, when config.json or a weight file is missing, broken or does not belong together.
    """
    config = _Config(directory / "config.json")
    tensors = [tensor for path in weight_paths(directory) for tensor in read_header(path)]
    stored_output = any(_OUTPUT.search(tensor.name) for tensor in tensors)
    tied = config.tied_embeddings or not stored_output
    layers = [0] * config.layers
    embedding_bytes = head_bytes = 0
    for tensor in tensors:
        layer = _LAYER.search(tensor.name)
        if _OTHER_TOWER.search(tensor.name) or _EMBEDDING.search(tensor.name):
            embedding_bytes += tensor.size_bytes
        elif layer is not None:
            # Layers after the last are for multi-token prediction; the engine does not load them.
            if int(layer[1]) < len(layers):
                layers[int(layer[1])] += tensor.size_bytes
        elif not (tied and _OUTPUT.search(tensor.name)):
            head_bytes += tensor.size_bytes
    empty = [index for index, size_bytes in enumerate(layers) if size_bytes == 0]
    if empty:
        raise ModelError(
            f"{directory} has no weights for layer {empty[0]}, though config.json says {len(layers)} layers",
            remedy="download the model again",
        )
    heads = config.positive("num_attention_heads", "n_head", "num_heads", "n_heads")
    kv_heads, head_dim = config.kv_heads_and_dim(heads)
    return ModelShape(
        architecture=config.architecture,
        layer_bytes=tuple(layers),
        embedding_bytes=embedding_bytes,
        head_bytes=head_bytes,
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        element_bytes=config.element_bytes or _stored_element_bytes(tensors),
        max_context=config.positive(
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "seq_length",
            "max_sequence_length",
            "max_seq_len",
        ),
        tied_embeddings=tied,
    )


def read_header(path: Path) -> Iterator[Tensor]:
    """The tensors of a safetensors file: 8 bytes little-endian length, that much JSON, then the data.

    Raises ModelError when the header is broken or the file ends before its last tensor.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            data_bytes = path.stat().st_size - 8 - length
            if not 2 <= length <= _MAX_HEADER_BYTES or data_bytes < 0:
                raise _broken(path, "its header is cut off or no safetensors header")
            header = json.loads(file.read(length))
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}", remedy="check its permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _broken(path, "its header is no JSON") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is no JSON object")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        match entry:
            case {"dtype": str(dtype), "data_offsets": [int(begin), int(end)]} if 0 <= begin <= end:
                if end > data_bytes:
                    raise _broken(path, f"it ends {end - data_bytes} bytes or more too early")
                yield Tensor(name, dtype, end - begin)
            case _:
                raise _broken(path, f"its header has no proper entry for {name[:80]!r}")


def _broken(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is broken: {why}", remedy="delete this file and download the model again")


def _stored_element_bytes(tensors: list[Tensor]) -> int:
    stored: dict[int, int] = {}
    for tensor in tensors:
        if tensor.dtype in _STORED_BYTES:
            width = _STORED_BYTES[tensor.dtype]
            stored[width] = stored.get(width, 0) + tensor.size_bytes
    return max(stored, key=lambda width: stored[width], default=2)


class _Config:
    """config.json; of a multimodal model, the part about its language model."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole = read_json(path)
        nested = self._whole.get("text_config")
        self._text: dict[str, Any] = self._whole | nested if isinstance(nested, dict) else self._whole

    @property
    def architecture(self) -> str:
        match self._whole.get("architectures"):
            case [str(name), *_]:
                return name
        raise self._wrong('has no "architectures"')

    @property
    def layers(self) -> int:
        layers = self.positive("num_hidden_layers", "n_layer", "num_layers", "n_layers")
        if layers > MAX_LAYERS:
            raise self._wrong(f"says {layers} layers; the limit is {MAX_LAYERS}")
        return layers

    @property
    def tied_embeddings(self) -> bool:
        return self._text.get("tie_word_embeddings") is True

    @property
    def element_bytes(self) -> int | None:
        dtype = self._text.get("dtype") or self._text.get("torch_dtype")
        return _DTYPE_BYTES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else None

    def positive(self, *names: str) -> int:
        """The first of these that the configuration has; models call the same thing by several names."""
        value = self._optional(*names)
        if value is None:
            raise self._wrong(f'has no "{names[0]}"')
        return value

    def kv_heads_and_dim(self, heads: int) -> tuple[int, int]:
        """KV heads and the size of one, such that 2 * heads * size elements are cached for a token and layer."""
        latent, rope = self._optional("kv_lora_rank"), self._optional("qk_rope_head_dim")
        if latent and rope:
            # Multi-head latent attention caches one latent vector and one rotary key, the same for every head.
            return 1, -(-(latent + rope) // 2)
        multi_query = self._text.get("multi_query") is True and not self._text.get("new_decoder_architecture")
        kv_heads = (
            1 if multi_query else self._optional("num_key_value_heads", "num_kv_heads", "n_head_kv") or heads
        )
        head_dim = self._optional("head_dim")
        return kv_heads, head_dim or max(1, self.positive("hidden_size", "n_embd", "d_model") // heads)

    def _optional(self, *names: str) -> int | None:
        for name in names:
            value = self._text.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
                raise self._wrong(f'has {str(value)[:40]!r} as "{name}", which must be a positive integer')
            return value
        return None

    def _wrong(self, what: str) -> ModelError:
        return ModelError(
            f"{self._path} {what}", remedy="use a model that this engine supports, or download it again"
        )
