"""From a question and a model's shape to what is asked of the planner. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from edgellm.errors import UsageError
from edgellm.leasing import SILENCE_S
from edgellm.types.model import ModelShape
from edgellm.types.plan import PlanRequest, Workload
from edgellm.types.request import Question

CONTEXT_STEP = 256
"""Contexts are rounded up to this many tokens, a multiple of every engine's KV block."""
UNKNOWN_PROMPT_CONTEXT = 4096
LEAST_LENT_S = 60.0
"""A host that lends for less is not worth a bring-up."""
SLOW_TOK_S = 20.0
"""What an answer is assumed to come at where hosts say when they stop: a guess, as no plan is made yet."""
TEMPLATE_TOKENS = 64
"""What a chat template may add around the messages."""


Disaggregate: TypeAlias = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user said about where and how to run; None and () leave it to the planner."""

    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    peers: tuple[str, ...] = ()
    fabric: str = "overlay"
    context: int | None = None
    sequences: int = 1
    serves_api: bool = False
    """Whether the engine is to serve its API over HTTP."""
    also_named: tuple[str, ...] = ()
    """Other names that requests over HTTP may call the model by."""
    at_once: int = 0
    """Requests that share the engine's steps, where they are more than `sequences`: short ones fit into its KV cache."""
    disaggregate: Disaggregate = "never"
    """Whether other hosts compute the prompt than those that answer: where that is expected to pay, or whenever it can be."""
    min_tok_s: float | None = None
    """Refuse rather than answer at less than this many tokens a second, by prediction."""
    patience_s: float = 60.0
    """How long others are looked for when a host is lost, before the answer fails; 0: not at all."""
    silence_s: float = SILENCE_S
    """A host that says nothing for so long is lost."""
    spares: int = 0
    """Hosts that stand by to take the place of one that is lost."""
    max_load: float | None = None
    """Leave out hosts of whose lent memory more than this share, 0 to 1, is leased now."""


def plan_request(
    model: str, digest: str, shape: ModelShape, wanted: Wanted, *, prompt_tokens: int | None, max_tokens: int
) -> PlanRequest:
    """What to ask of the planner, with a context that holds the prompt and the answer.

    `prompt_tokens` is None where the prompt is not known (a session) or cannot be counted here (the engine will). Raises
    UsageError when the prompt does not fit into the model's context, or the wanted context is over the model's.
    """
    most = shape.max_context
    if wanted.context is not None and not 1 <= wanted.context <= most:
        raise UsageError(
            f"--context {wanted.context} is not possible: {model} takes at most {most} tokens",
            remedy=f"choose at most --context {most}",
        )
    limit = wanted.context or most
    if prompt_tokens is not None and prompt_tokens >= limit:
        raise UsageError(
            f"the prompt has {prompt_tokens} tokens, the context of {model} only {limit}, the answer included",
            remedy="shorten the prompt, or choose a model with a longer context",
        )
    if wanted.context is not None:
        context = wanted.context
    elif prompt_tokens is None:
        context = min(most, UNKNOWN_PROMPT_CONTEXT)
    else:
        needed = prompt_tokens + TEMPLATE_TOKENS + max_tokens
        context = min(most, -(-needed // CONTEXT_STEP) * CONTEXT_STEP)
    return PlanRequest(
        model=model,
        digest=digest,
        shape=shape,
        context=context,
        sequences=wanted.sequences,
        tensor_parallel=wanted.tensor_parallel,
        pipeline_parallel=wanted.pipeline_parallel,
        peers=wanted.peers,
        fabric=wanted.fabric,
        min_tok_s=wanted.min_tok_s or 0.0,
        max_load=1.0 if wanted.max_load is None else wanted.max_load,
        lasts_s=lasting_s(min(max_tokens, context)),
        workload=Workload(prompt_tokens or 0, max(1, min(max_tokens, context - (prompt_tokens or 0)))),
    )


def lasting_s(max_tokens: int) -> float:
    """How long hosts must lend for an answer of at most `max_tokens`, with its bring-up; 0 tokens: for a session.

    A session lasts longer than anybody can tell: it moves when a host that it has drains.
    """
    return LEAST_LENT_S + max_tokens / SLOW_TOK_S


def fitted(question: Question, *, prompt_tokens: int | None, context: int) -> Question:
    """The question with `max_tokens` cut to what the context leaves after the prompt, where that is known."""
    if prompt_tokens is None:
        return question
    room = max(1, context - prompt_tokens)
    sampling = question.sampling
    return replace(question, sampling=replace(sampling, max_tokens=min(sampling.max_tokens, room)))
