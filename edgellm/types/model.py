"""What a model is, as far as planning and verifying need to know it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that decide where a model fits. Read from `config.json` and the safetensors headers."""

    architecture: str
    """As the engine names it, e.g. "LlamaForCausalLM"."""
    layer_bytes: tuple[int, ...]
    """Weights of each transformer layer, in order."""
    embedding_bytes: int
    """Held by the first pipeline stage (and by the last, where embeddings are tied)."""
    head_bytes: int
    """Held by the last pipeline stage: final norm and output projection."""
    attention_heads: int
    kv_heads: int
    head_dim: int
    element_bytes: int
    """Of one weight or KV element: 2 for bf16."""
    max_context: int
    """Tokens, prompt and answer together."""
    tied_embeddings: bool = False

    @property
    def layers(self) -> int:
        return len(self.layer_bytes)

    @property
    def weights_bytes(self) -> int:
        return sum(self.layer_bytes) + self.embedding_bytes + self.head_bytes

    @property
    def kv_bytes_per_token_and_layer(self) -> int:
        """Keys and values of one token in one layer, all heads."""
        return 2 * self.kv_heads * self.head_dim * self.element_bytes


@dataclass(frozen=True, slots=True)
class ModelFile:
    path: str
    """Relative to the model directory, with forward slashes."""
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """Everything that must be equal for two hosts to hold the same model. `digest` names it."""

    files: tuple[ModelFile, ...]
    shape: ModelShape

    @property
    def light_files(self) -> tuple[ModelFile, ...]:
        """What a head needs: everything except the weights."""
        return tuple(file for file in self.files if not file.path.endswith(".safetensors"))
