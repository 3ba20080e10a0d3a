"""What an engine has answered: how much, and some answers, picked at random, for others to check; and its view of theirs.

A host must not see which answers are picked, or it would lie in the others alone. So nothing about a request depends on that:
all that are not plainly greedy have the logprobs of their tokens asked for, wherever answers are picked at all.
"""

from __future__ import annotations

import contextlib
import random
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from edgellm.wire import backend_pb2 as pb

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

KEPT = 8
"""Picked answers that wait to be taken; the oldest goes first."""
MOST_TOKENS = 8192
"""Of an answer that is picked: what comes later is not checked."""
MOST_POSITIONS = 64
"""That one call scores."""


class InvalidScoring(Exception):
    """The request can never work as it is; the text says why."""


class Witness:
    """Of one engine."""

    def __init__(self, share: float, chance: Callable[[], float] | None = None) -> None:
        """`share` of the answers is picked."""
        self._share = share
        self._chance = chance or random.SystemRandom().random
        self._generate: Any = None
        self._addresses: tuple[str, ...] = ()
        self._moves = 0
        self._answers = self._tokens = 0
        self._picked: deque[pb.PickedAnswer] = deque(maxlen=KEPT)

    def watch(self, llm: AsyncLLM) -> None:
        """Has every request to `llm`, whoever makes it, be counted from now on."""
        self._generate = llm.generate
        llm.generate = self._watched

    def moved(self, addresses: tuple[str, ...]) -> None:
        """These members compute from now on. What others had begun is not picked: nobody could say who computed what."""
        self._addresses = addresses
        self._moves += 1

    def served(self) -> pb.ServedReply:
        """See backend.proto."""
        picked = [self._picked.popleft() for _ in range(len(self._picked))]
        return pb.ServedReply(answers=self._answers, answer_tokens=self._tokens, picked=picked)

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreReply:
        """See backend.proto. Raises InvalidScoring."""
        answer = list(request.token_ids)
        if not 0 < len(request.positions) <= MOST_POSITIONS or max(request.positions) >= len(answer):
            raise InvalidScoring(f"{len(request.positions)} positions of an answer of {len(answer)} tokens")
        from vllm import SamplingParams, TokensPrompt
        from vllm.exceptions import VLLMClientError

        scores = []
        for position in request.positions:
            token = answer[position]
            # The one that stands there is forced; logprobs are of the model as it is, before that.
            params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=1, allowed_token_ids=[token])
            prompt = TokensPrompt(prompt_token_ids=[*request.prompt_ids, *answer[:position]])
            known: dict[int, Any] = {}
            try:
                async for output in self._generate(prompt, params, f"score-{secrets.token_hex(8)}"):
                    known = next(iter(output.outputs[0].logprobs or ()), known)
            except VLLMClientError as error:
                raise InvalidScoring(str(error)) from error
            if token not in known:
                raise InvalidScoring(f"token {token} is outside the model's vocabulary")
            likeliest = max(entry.logprob for entry in known.values())
            scores.append(pb.PositionScore(logprob=known[token].logprob, likeliest_logprob=likeliest))
        return pb.ScoreReply(scores=scores)

    async def _watched(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        params, asked = sampling_params, _asked_logprobs(sampling_params)
        likeliest = _is_likeliest(params)
        can_be_checked = self._share > 0 and _can_be_checked(prompt, params, options)
        if can_be_checked and not likeliest and not asked:
            params = params.clone()
            params.logprobs = 0
        moves = self._moves
        heard = _Heard() if can_be_checked and self._chance() < self._share else None
        outputs = self._generate(prompt, params, request_id, **options)
        kind, counted = getattr(params, "output_kind", None), 0
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    tokens = sum(len(choice.token_ids) for choice in output.outputs)
                    counted = counted + tokens if kind is not None and kind.name == "DELTA" else tokens
                    if heard is not None:
                        heard.hear(output, added=kind is not None and kind.name == "DELTA")
                    if params is not sampling_params:
                        for choice in output.outputs:
                            choice.logprobs = None
                    yield output
        finally:
            # Also of one that was broken off: what came is as true or false as the whole.
            self._answers += 1
            self._tokens += counted
            if heard is not None and heard.token_ids and moves == self._moves:
                self._picked.append(heard.picked(self._addresses, likeliest=likeliest))


class _Heard:
    """An answer as it comes."""

    def __init__(self) -> None:
        self.prompt_ids: list[int] = []
        self.token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._cached = 0

    def hear(self, output: Any, *, added: bool) -> None:
        choice = output.outputs[0]
        self.prompt_ids = self.prompt_ids or list(output.prompt_token_ids or ())
        self._cached = max(self._cached, output.num_cached_tokens or 0)
        if not added:
            self.token_ids, self._logprobs = [], []
        self.token_ids += choice.token_ids
        self._logprobs += [
            entry[token].logprob
            for token, entry in zip(choice.token_ids, choice.logprobs or (), strict=False)
        ]

    def picked(self, addresses: tuple[str, ...], *, likeliest: bool) -> pb.PickedAnswer:
        is_whole = len(self._logprobs) == len(self.token_ids)
        return pb.PickedAnswer(
            prompt_ids=self.prompt_ids,
            token_ids=self.token_ids[:MOST_TOKENS],
            logprobs=self._logprobs[:MOST_TOKENS] if is_whole else (),
            is_likeliest=likeliest,
            cached_prompt_tokens=self._cached,
            addresses=addresses,
        )


def _asked_logprobs(params: Any) -> bool:
    return getattr(params, "logprobs", None) is not None or bool(getattr(params, "logprob_token_ids", None))


def _can_be_checked(prompt: Any, params: Any, options: dict[str, Any]) -> bool:
    """Whether prompt and answer are tokens and nothing else, and the answer is one."""
    has_media = isinstance(prompt, dict) and any(key.startswith(("multi_modal", "mm_")) for key in prompt)
    return (
        not has_media
        and getattr(params, "n", 0) == 1
        and not getattr(params, "logprob_token_ids", None)
        and params.logprobs != -1
        and options.get("lora_request") is None
    )


def _is_likeliest(params: Any) -> bool:
    """Whether each token is to be the model's likeliest one."""
    return (
        getattr(params, "temperature", None) == 0
        and not params.presence_penalty
        and not params.frequency_penalty
        and params.repetition_penalty == 1
        and not params.min_tokens
        and not params.logit_bias
        and not params.allowed_token_ids
        and not params.bad_words
        and params.structured_outputs is None
    )
