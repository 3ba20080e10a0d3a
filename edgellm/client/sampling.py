"""How an answer is to be sampled, as a caller says it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgellm.errors import UsageError
from edgellm.types.request import Sampling

_SEEDS = 1 << 63
_TOKENS = 1 << 32


@dataclass(frozen=True, slots=True)
class SamplingParams(Sampling):
    """How an answer is to be sampled; best given by name: `SamplingParams(max_tokens=200, temperature=0)`.

    max_tokens          longest answer, in tokens: 512. It ends earlier where the context ends
    temperature         0 to 2: 0.7; 0 always takes the likeliest token
    top_p               the likeliest tokens that together have this probability: 1.0, all
    top_k               only so many of the likeliest tokens: 0, all
    min_p               only tokens at least so likely as this share of the likeliest: 0.0
    seed                makes sampling repeatable: None
    stop                texts before which the answer ends: none
    stop_token_ids      tokens with which it ends: none
    ignore_eos          go on after the model's own end: False
    presence_penalty    -2 to 2, frequency_penalty likewise: 0.0
    repetition_penalty  above 0: 1.0, none

    Raises UsageError for a value that is out of its range.
    """

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        if not all(isinstance(text, str) and text for text in stop):
            raise UsageError("stop must be texts with at least one character", remedy='stop=["\\n"]')
        _whole("max_tokens", self.max_tokens, 1, _TOKENS)
        _whole("top_k", self.top_k, 0, _TOKENS)
        if self.seed is not None:
            _whole("seed", self.seed, 0, _SEEDS)
        for token in self.stop_token_ids:
            _whole("a stop token", token, 0, _TOKENS)
        _number("temperature", self.temperature, 0, 2)
        _number("top_p", self.top_p, 0, 1, above=True)
        _number("min_p", self.min_p, 0, 1)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        _number("repetition_penalty", self.repetition_penalty, 0, 100, above=True)


def _whole(name: str, value: object, least: int, end: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < end:
        raise UsageError(f"{name} must be a whole number from {least} on, not {value!r}")


def _number(name: str, value: object, least: float, most: float, *, above: bool = False) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most or (above and value == least):  # type: ignore[operator]
        between = f"above {least} and at most {most}" if above else f"between {least} and {most}"
        raise UsageError(f"{name} must be {between}, not {value!r}")
