"""One question to an engine, and the pieces of its answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgellm.errors import UsageError


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
    top_k: int = 0
    """0: all tokens."""
    min_p: float = 0.0
    """Leaves out tokens less likely than this share of the likeliest one."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    """The answer ends with the first of them."""


@dataclass(frozen=True, slots=True)
class Question:
    """One of `text` or `token_ids`, taken as they are, or `messages`, put through the model's chat template."""

    text: str | None = None
    messages: tuple[Message, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    token_ids: tuple[int, ...] = ()


def require_prompt(question: Question) -> None:
    """Raises UsageError for a question without words."""
    if question.token_ids:
        return
    texts = (
        [question.text]
        if question.text is not None
        else [message.content for message in question.messages if message.role == "user"]
    )
    if not any(text and text.strip() for text in texts):
        raise UsageError(
            "the prompt is empty", remedy='say something: edgellm ask "PROMPT" --model MODEL, or pipe it in'
        )


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
