"""One question to an engine, and the pieces of its answer."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    max_tokens: int = 512
    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """Either `text`, taken as it is, or `messages`, put through the model's chat template."""

    text: str | None = None
    messages: tuple[Message, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new in an answer since the piece before."""

    token_ids: tuple[int, ...]
    text: str
    prompt_tokens: int
    finish_reason: str = ""
    """Empty until the last piece; then "stop", "length" or "abort"."""
    cached_prompt_tokens: int = 0
    """Of the prompt, not computed: the engine had them, or KV blocks brought them."""
