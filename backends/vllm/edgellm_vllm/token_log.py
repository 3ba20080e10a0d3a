"""What the engine has been asked and has answered so far, kept where it outlives the engine core.

A request that a core did not finish is asked of the next one as prompt and tokens so far. The tokens go along in the request's
sampling parameters, whose `extra_args` vLLM hands on unread; `resumed_requests` makes them output tokens there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

TOKENS = "edgellm_tokens_so_far"
"""Key in `extra_args`."""

MAX_FRUITLESS = 4
"""Engines that broke in a row while they had a request and made no token of it: it may be what breaks them."""


@dataclass(slots=True)
class _Entry:
    request: Any
    """vLLM's EngineCoreRequest."""
    tokens: list[int] = field(default_factory=list)
    told: int = 0
    """How many of `tokens` there were when an engine last broke."""
    fruitless: int = 0


class TokenLog:
    """Of all requests that are not finished, in the order they came."""

    def __init__(self) -> None:
        self._open: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def add(self, request: Any) -> None:
        """A request to the engine (vLLM's EngineCoreRequest)."""
        # One that is made to be aborted at once, and further input of a session, are nothing to go on with.
        if not request.abort_immediately and request.request_id not in self._open:
            self._open[request.request_id] = _Entry(request)

    def note(self, outputs: Iterable[Any]) -> None:
        """Pieces of answers, as they are handed on (vLLM's EngineCoreOutput)."""
        for output in outputs:
            if output.finish_reason is not None:
                self._open.pop(output.request_id, None)
            elif output.new_token_ids and (entry := self._open.get(output.request_id)) is not None:
                entry.tokens += output.new_token_ids

    def drop(self, request_ids: Iterable[str]) -> None:
        """These are wanted no more."""
        for request_id in request_ids:
            self._open.pop(request_id, None)

    def give_up(self, *, broken: bool) -> list[str]:
        """Called when an engine is gone; the ids of those that cannot be asked again, which are forgotten.

        `broken`: it broke by itself, so that it may have been for one of them.
        """
        hopeless = []
        for request_id, entry in self._open.items():
            if broken:
                entry.fruitless = entry.fruitless + 1 if len(entry.tokens) == entry.told else 0
                entry.told = len(entry.tokens)
            if entry.fruitless >= MAX_FRUITLESS or not _can_be_asked_again(entry.request):
                hopeless.append(request_id)
        self.drop(hopeless)
        return hopeless

    def continuations(self) -> list[Any]:
        """What to ask the next engine: a request for each that is open."""
        return [_continuation(entry.request, entry.tokens) for entry in self._open.values()]


def _can_be_asked_again(request: Any) -> bool:
    # Of an image that the last engine had in its cache, the head has kept the name alone. A session's input so far is not kept.
    return not request.resumable and all(feature.data is not None for feature in request.mm_features or ())


def _continuation(request: Any, tokens: list[int]) -> Any:
    if not tokens:
        return request
    params = request.sampling_params.clone()
    params.extra_args = {**(params.extra_args or {}), TOKENS: list(tokens)}
    # These went out with the first token.
    params.prompt_logprobs = None
    again = copy.copy(request)
    again.sampling_params = params
    return again


def tokens_so_far(params: Any) -> list[int]:
    """What a request's sampling parameters (None: it has none) bring along."""
    extra = getattr(params, "extra_args", None) or {}
    return list(extra.get(TOKENS) or ())
