"""From what a caller may give as a prompt to a question. Pure."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence, Set
from typing import Any, TypeAlias, cast

from edgellm.client.sampling import SamplingParams
from edgellm.errors import UsageError
from edgellm.types.request import Message, Question

Turn: TypeAlias = Message | Mapping[str, Any]
"""`Message("user", "Why?")` or `{"role": "user", "content": "Why?"}`."""
Prompt: TypeAlias = str | Sequence[int] | Sequence[Turn]
"""A text or token ids, taken as they are, or the messages of a chat, put through the model's chat template."""

_REMEDY = "give a text, a list of token ids, or a list of messages"


def question_of(prompt: Prompt, params: SamplingParams | None) -> Question:
    """Raises UsageError for a prompt that is empty or none of the kinds."""
    sampling = _sampling(params)
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UsageError("the prompt is empty", remedy=_REMEDY)
        return Question(text=prompt, sampling=sampling)
    items = _items(prompt)
    if not items:
        raise UsageError("the prompt is empty", remedy=_REMEDY)
    if all(isinstance(item, Message | Mapping) for item in items):
        return Question(messages=_messages(cast("Sequence[Turn]", items)), sampling=sampling)
    return Question(token_ids=tuple(map(_token, items)), sampling=sampling)


def chat_of(messages: str | Sequence[Turn], params: SamplingParams | None) -> Question:
    """As `question_of`; a text is what a user says."""
    if isinstance(messages, str):
        return question_of([Message("user", messages)], params)
    return Question(messages=_messages(_items(messages)), sampling=_sampling(params))


def questions_of(
    prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> tuple[Question, ...]:
    """One for each prompt, in their order. One set of parameters is for all, a list has one for each."""
    many = _many(prompts)
    if params is None or isinstance(params, SamplingParams):
        each: Sequence[SamplingParams | None] = [params] * len(many)
    else:
        each = list(params)
    if len(each) != len(many):
        raise UsageError(
            f"there are {len(many)} prompts and {len(each)} sampling parameters",
            remedy="give one for each prompt, or one for all",
        )
    questions = []
    for index, (prompt, own) in enumerate(zip(many, each, strict=True)):
        try:
            questions.append(question_of(prompt, own))
        except UsageError as error:
            raise about_prompt(error, index, len(many)) from None
    return tuple(questions)


def about_prompt(error: UsageError, index: int, count: int) -> UsageError:
    """The error, saying which of several prompts it is about."""
    return error if count == 1 else UsageError(f"prompt {index + 1} of {count}: {error}", remedy=error.remedy)


def _many(prompts: Any) -> list[Any]:
    """The prompts of a list; of what is one prompt, itself."""
    if isinstance(prompts, str):
        return [prompts]
    items = _items(prompts)
    return items if not items or _is_prompt(items[0]) else [prompts]


def _is_prompt(value: Any) -> bool:
    """And no part of one: no message, no token id, not even one in a tensor without dimensions."""
    if isinstance(value, Message | Mapping):
        return False
    try:
        len(value)
    except TypeError:
        return False
    return True


def _items(prompt: Any) -> list[Any]:
    try:
        # All of these have items, too: keys, numbers in no order, octets.
        if isinstance(prompt, Mapping | Set | bytes | bytearray):
            raise TypeError
        return list(prompt)
    except TypeError:
        raise UsageError(f"{type(prompt).__name__} is no prompt", remedy=_REMEDY) from None


def _messages(turns: Sequence[Any]) -> tuple[Message, ...]:
    messages = tuple(map(_message, turns))
    if not any(message.content.strip() for message in messages):
        raise UsageError("the messages are empty", remedy=_REMEDY)
    return messages


def _message(turn: Any) -> Message:
    if isinstance(turn, Mapping) and turn.keys() <= {"role", "content"}:
        turn = Message(turn.get("role", ""), turn.get("content", ""))
    if not isinstance(turn, Message) or not isinstance(turn.content, str) or not _is_role(turn.role):
        raise UsageError(
            f"{str(turn)[:100]} is no message of a chat with text",
            remedy='messages look like {"role": "user", "content": "Why?"}; for other content use the endpoint',
        )
    return turn


def _is_role(role: object) -> bool:
    return isinstance(role, str) and bool(role)


def _token(item: Any) -> int:
    try:
        token = operator.index(item)
    except TypeError:
        raise UsageError(f"{item!r} is no token id", remedy=_REMEDY) from None
    if not 0 <= token < 1 << 32:
        raise UsageError(f"{token} is no token id", remedy=_REMEDY)
    return token


def _sampling(params: SamplingParams | None) -> SamplingParams:
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise UsageError(
            f"{type(params).__name__} is no SamplingParams", remedy="SamplingParams(max_tokens=200)"
        )
    return params
