"""From a request to token ids, and whether the engine can take it at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgellm.wire import backend_pb2 as pb


class InvalidRequest(Exception):
    """The request can never work as it is; the text says why."""


def prompt_token_ids(request: pb.GenerateRequest, tokenizer: Any) -> list[int]:
    """The request's prompt as token ids; raises InvalidRequest when there is none.

    `tokenizer` is a Hugging Face tokenizer.
    """
    kind = request.WhichOneof("prompt")
    if kind == "tokens":
        ids = list(request.tokens.ids)
    elif kind == "chat":
        ids = _chat_token_ids(request.chat.messages, tokenizer)
    elif kind == "text" and request.text:
        ids = list(tokenizer.encode(request.text))
    else:
        ids = []
    if not ids:
        raise InvalidRequest("the prompt is empty")
    size = len(tokenizer)
    if max(ids) >= size:
        raise InvalidRequest(f"token id {max(ids)} is outside the model's vocabulary of {size}")
    return ids


def _chat_token_ids(messages: Sequence[pb.ChatMessage], tokenizer: Any) -> list[int]:
    if not any(message.content.strip() for message in messages):
        return []
    if tokenizer.chat_template is None:
        return list(tokenizer.encode("\n\n".join(message.content for message in messages)))
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:
        raise InvalidRequest(f"the model's chat template refuses these messages: {error}") from error
    return list(tokenizer.encode(text, add_special_tokens=False))


def plain_template(tokenizer: Any) -> str:
    """A chat template for a model that has none: the same token ids as for such a chat here."""
    begins = tokenizer.bos_token_id is not None and tokenizer.encode("x")[0] == tokenizer.bos_token_id
    start = "{{ bos_token }}" if begins else ""
    return (
        start
        + "{% for message in messages %}{{ message.content }}{{ '' if loop.last else '\\n\\n' }}{% endfor %}"
    )


def answer_tokens(prompt_tokens: int, wanted: int, max_model_len: int) -> int:
    """How many tokens may be made: `wanted` (0: as many as fit), at most what the context leaves.

    Raises InvalidRequest when the prompt leaves no room for a single one.
    """
    room = max_model_len - prompt_tokens
    if room < 1:
        raise InvalidRequest(
            f"the prompt has {prompt_tokens} tokens, but the context holds {max_model_len}, "
            "prompt and answer together"
        )
    return min(wanted or room, room)


def check_sampling(sampling: pb.SamplingParams) -> None:
    """Raises InvalidRequest for values outside their range."""
    if not 0 <= sampling.temperature <= 2:
        raise InvalidRequest(f"temperature must be between 0 and 2, not {sampling.temperature}")
    if not 0 <= sampling.top_p <= 1:
        raise InvalidRequest(f"top_p must be between 0 and 1, not {sampling.top_p}")
    if not 0 <= sampling.min_p <= 1:
        raise InvalidRequest(f"min_p must be between 0 and 1, not {sampling.min_p}")
    for name in ("presence_penalty", "frequency_penalty"):
        if not -2 <= getattr(sampling, name) <= 2:
            raise InvalidRequest(f"{name} must be between -2 and 2, not {getattr(sampling, name)}")
    if not 0 <= sampling.repetition_penalty <= 100:
        raise InvalidRequest(
            f"repetition_penalty must be between 0 and 100, not {sampling.repetition_penalty}"
        )
