"""Everything that fixes the bytes of a piece besides the tokens and the region.

Ranks that differ in any of it must never read each other's pieces: the sizes are often the same, and the answer is wrong
without an error. None of it is in LMCache's own keys.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

_VERSION = 1
"""Of this list and of the layout of pieces."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """Texts as the engine gives them; they are compared, not understood."""

    weights: str
    """Digest of the model's files: the same weights at another path are the same."""
    dtype: str
    kv_dtype: str
    block_tokens: int
    """vLLM's CPU attention packs each block for itself."""
    chunk_tokens: int
    device: str
    attention: str
    """vLLM's attention backends."""
    instructions: str
    """The instruction set that keys are packed for, or the GPU's capability."""
    layout: str
    engine: str
    """Versions of what computes and cuts the values."""
    lora: str
    """Digest of an adapter; "" for none."""

    def digest(self) -> bytes:
        """32 bytes that differ where any field does."""
        fields = json.dumps([_VERSION, asdict(self)], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(b"edgellm kv namespace\0" + fields.encode()).digest()
