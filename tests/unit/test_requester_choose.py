"""From a question to what is asked of the planner."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import UsageError
from edgellm.requester.choose import Wanted, fitted, plan_request
from edgellm.types.plan import PlanRequest
from edgellm.types.request import Message, Question, Sampling, require_prompt
from tests.unit.samples import DIGEST, SHAPE


def request(wanted: Wanted, prompt_tokens: int | None = 10, max_tokens: int = 100) -> PlanRequest:
    return plan_request("tiny", DIGEST, SHAPE, wanted, prompt_tokens=prompt_tokens, max_tokens=max_tokens)


@pytest.mark.parametrize(
    "question",
    [
        Question(text=""),
        Question(text=" \n\t"),
        Question(),
        Question(messages=(Message("user", " "),)),
        Question(messages=(Message("system", "be brief"), Message("user", ""))),
    ],
)
def test_a_question_without_words(question: Question) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        require_prompt(question)


def test_a_question_with_words() -> None:
    require_prompt(Question(text="why"))
    require_prompt(Question(token_ids=(1,)))
    require_prompt(Question(messages=(Message("system", ""), Message("user", "why"))))


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "context"),
    [(10, 100, 256), (92, 100, 256), (93, 100, 512), (1, 512, 768), (10, 5000, 2048), (None, 512, 2048)],
)
def test_the_context_holds_prompt_template_and_answer(
    prompt_tokens: int | None, max_tokens: int, context: int
) -> None:
    assert request(Wanted(), prompt_tokens, max_tokens).context == context


def test_a_context_that_was_asked_for_is_taken() -> None:
    assert request(Wanted(context=300)).context == 300
    with pytest.raises(UsageError, match="--context 2049 is not possible: tiny takes at most 2048"):
        request(Wanted(context=2049))


def test_a_prompt_that_leaves_no_room() -> None:
    assert request(Wanted(), 2047).context == 2048
    with pytest.raises(UsageError, match="the prompt has 2048 tokens"):
        request(Wanted(), 2048)
    with pytest.raises(UsageError, match="the prompt has 300 tokens, the context of tiny only 300"):
        request(Wanted(context=300), 300)


def test_what_the_user_said_reaches_the_planner() -> None:
    asked = request(Wanted(2, 3, ("alice",), "direct", 512, 8))
    assert (asked.tensor_parallel, asked.pipeline_parallel, asked.peers) == (2, 3, ("alice",))
    assert (asked.fabric, asked.context, asked.sequences) == ("direct", 512, 8)
    assert (asked.min_tok_s, asked.max_load) == (0, 1)
    asked = request(Wanted(min_tok_s=5, max_load=0))
    assert (asked.min_tok_s, asked.max_load) == (5, 0)


@given(prompt=st.integers(0, 5000), longest=st.integers(1, 5000))
def test_prompt_and_bounded_answer_always_fit(prompt: int, longest: int) -> None:
    question = Question(text="why", sampling=Sampling(max_tokens=longest))
    try:
        context = request(Wanted(), prompt, longest).context
    except UsageError:
        assert prompt >= SHAPE.max_context
        return
    bounded = fitted(question, prompt_tokens=prompt, context=context).sampling.max_tokens
    assert 1 <= bounded <= longest
    assert prompt + bounded <= context <= SHAPE.max_context


def test_what_cannot_be_counted_is_left_to_the_engine() -> None:
    question = Question(text="why", sampling=Sampling(max_tokens=9999))
    assert fitted(question, prompt_tokens=None, context=256) is question
