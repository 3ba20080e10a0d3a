"""What the engine has been asked and has answered so far, kept where it outlives the engine core.

A request that a core did not finish is asked of the next one together with its tokens so far, in one of two ways:

* **Computed at once**, as a prompt is. `resumed_requests` makes them output tokens, so that all that counts tokens goes on.
  Sums come in another order than they did one by one, and with sixteen bits a token may follow that is as likely as the one
  that would have.
* **Computed one by one**, as they were when they were made. What follows is what would have followed, to the last bit. It takes
  about half as long as it took, for a stage need not wait for what the last one chooses.

So what depends on bits (greedy answers, and those with a seed) is computed one by one where it took no longer than `REPLAY_S`
to make. Tokens go along in the sampling parameters' `extra_args`, which vLLM hands on unread.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

TOKENS = "edgellm_tokens_so_far"
"""Key in `extra_args`: to be computed at once."""
REPLAY = "edgellm_tokens_again"
"""Key in `extra_args`: to be computed one by one."""
_OURS = frozenset((TOKENS, REPLAY))
REPLAY_S = 2.0

MAX_FRUITLESS = 4
"""Engines that broke in a row while they had a request and made no token of it: it may be what breaks them."""

_GREEDY = 1e-5


@dataclass(slots=True)
class _Entry:
    request: Any
    """vLLM's EngineCoreRequest."""
    tokens: list[int] = field(default_factory=list)
    decode_s: float = 0.0
    """From a first to a last token, in all engines so far."""
    first: float = 0.0
    last: float = 0.0
    told: int = 0
    """How many of `tokens` there were when an engine last broke."""
    fruitless: int = 0


class TokenLog:
    """Of all requests that are not finished, in the order they came."""

    def __init__(self, replay_s: float = REPLAY_S) -> None:
        """0: tokens are never computed one by one."""
        self._replay_s = replay_s
        self._open: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def add(self, request: Any) -> None:
        """A request to the engine (vLLM's EngineCoreRequest); from now on it has no tokens but those that the engine makes."""
        # Over HTTP anybody may say anything in `extra_args`.
        if (extra := getattr(request.sampling_params, "extra_args", None)) and not extra.keys().isdisjoint(
            _OURS
        ):
            request.sampling_params.extra_args = {key: extra[key] for key in extra if key not in _OURS}
        # One that is made to be aborted at once, and further input of a session, are nothing to go on with.
        if not request.abort_immediately and request.request_id not in self._open:
            self._open[request.request_id] = _Entry(request)

    def note(self, outputs: list[Any]) -> None:
        """Pieces of answers (vLLM's EngineCoreOutput) that are handed on now."""
        now = time.monotonic()
        for output in outputs:
            entry = self._open.get(output.request_id)
            if entry is None:
                continue
            if output.finish_reason is not None:
                del self._open[output.request_id]
            elif output.new_token_ids:
                entry.tokens += output.new_token_ids
                entry.last = now
                entry.first = entry.first or now

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
            entry.decode_s += entry.last - entry.first
            entry.first = entry.last = 0.0
            if broken:
                entry.fruitless = entry.fruitless + 1 if len(entry.tokens) == entry.told else 0
                entry.told = len(entry.tokens)
            if entry.fruitless >= MAX_FRUITLESS or not _can_be_asked_again(entry.request):
                hopeless.append(request_id)
        self.drop(hopeless)
        return hopeless

    def continuations(self) -> list[Any]:
        """What to ask the next engine: a request for each that is open."""
        return [self._continuation(entry) for entry in self._open.values()]

    def _continuation(self, entry: _Entry) -> Any:
        if not entry.tokens:
            return entry.request
        params = entry.request.sampling_params.clone()
        key = TOKENS
        if entry.decode_s < self._replay_s and (params.temperature < _GREEDY or params.seed is not None):
            key = REPLAY
        params.extra_args = {**(params.extra_args or {}), key: list(entry.tokens)}
        # These went out with the first token.
        params.prompt_logprobs = None
        again = copy.copy(entry.request)
        again.sampling_params = params
        return again


def _can_be_asked_again(request: Any) -> bool:
    # Of an image that the last engine had in its cache, the head has kept the name alone. A session's input so far is not kept.
    return not request.resumable and all(feature.data is not None for feature in request.mm_features or ())


def tokens_so_far(params: Any, key: str = TOKENS) -> list[int]:
    """What a request's sampling parameters (None: it has none) bring along under `key`."""
    extra = getattr(params, "extra_args", None) or {}
    return list(extra.get(key) or ())
