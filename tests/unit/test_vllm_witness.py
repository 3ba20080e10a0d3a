"""What an engine notes of its answers, on an engine that says what a list says."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from edgellm_vllm.witness import KEPT, InvalidScoring, Witness

from edgellm.wire import backend_pb2 as pb


class Params(SimpleNamespace):
    def clone(self) -> Params:
        return copy.copy(self)


def params(**changes: Any) -> Params:
    """As vLLM's are where nothing is said."""
    known = {
        "n": 1,
        "temperature": 0.0,
        "logprobs": None,
        "logprob_token_ids": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "min_tokens": 0,
        "logit_bias": None,
        "allowed_token_ids": None,
        "bad_words": [],
        "structured_outputs": None,
        "output_kind": SimpleNamespace(name="DELTA"),
    }
    return Params(**known | changes)


class Llm:
    """Answers 7, 8, 9, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Params] = []

    async def generate(
        self, prompt: Any, sampling_params: Params, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        self.asked.append(sampling_params)
        whole: list[int] = []
        for token in (7, 8, 9):
            whole.append(token)
            ids = [token] if sampling_params.output_kind.name == "DELTA" else list(whole)
            wants = sampling_params.logprobs is not None
            logprobs = [{one: SimpleNamespace(logprob=-one / 10)} for one in ids] if wants else None
            choice = SimpleNamespace(token_ids=ids, logprobs=logprobs)
            yield SimpleNamespace(
                outputs=[choice], prompt_token_ids=[1, 2], num_cached_tokens=1, finished=token == 9
            )


def watching(llm: Llm, share: float, chance: Callable[[], float] | None = None) -> Witness:
    """A witness of `llm`, whose cluster has one member."""
    witness = Witness(share, chance)
    witness.watch(llm)  # type: ignore[arg-type]
    witness.moved(("10.88.0.2",))
    return witness


async def heard(llm: Llm, asked: Params, **options: Any) -> list[Any]:
    return [output async for output in llm.generate({}, asked, "id", **options)]


async def test_a_greedy_answer_is_picked_and_nothing_is_asked_for_it() -> None:
    llm = Llm()
    witness = watching(llm, 1.0)
    await heard(llm, params())
    reply = witness.served()
    assert (reply.answers, reply.answer_tokens) == (1, 3)
    expected = pb.PickedAnswer(
        prompt_ids=[1, 2],
        token_ids=[7, 8, 9],
        is_likeliest=True,
        cached_prompt_tokens=1,
        addresses=["10.88.0.2"],
    )
    assert list(reply.picked) == [expected]
    assert llm.asked[0].logprobs is None
    assert not witness.served().picked, "each is told once"


@pytest.mark.parametrize("kind", ["DELTA", "CUMULATIVE"])
@pytest.mark.parametrize("chance", [0.0, 0.99])
async def test_whether_an_answer_is_picked_cannot_be_seen(kind: str, chance: float) -> None:
    """Hosts see the parameters: they must be the same for those that are picked and those that are not."""
    llm = Llm()
    witness = watching(llm, 0.5, lambda: chance)
    own = params(temperature=1.0, output_kind=SimpleNamespace(name=kind))
    outputs = await heard(llm, own)
    assert llm.asked[0].logprobs == 0
    assert own.logprobs is None, "the caller's own are as they were"
    assert all(output.outputs[0].logprobs is None for output in outputs), "nobody gets what nobody asked for"
    picked = list(witness.served().picked)
    assert bool(picked) == (chance < 0.5)
    if picked:
        assert list(picked[0].token_ids) == [7, 8, 9]
        assert list(picked[0].logprobs) == pytest.approx([-0.7, -0.8, -0.9])
        assert not picked[0].is_likeliest


async def test_who_asked_for_logprobs_gets_them() -> None:
    llm = Llm()
    witness = watching(llm, 1.0)
    outputs = await heard(llm, params(temperature=1.0, logprobs=3))
    assert llm.asked[0].logprobs == 3
    assert all(output.outputs[0].logprobs for output in outputs)
    assert witness.served().picked


async def test_without_checks_nothing_changes_and_all_is_counted() -> None:
    llm = Llm()
    witness = watching(llm, 0.0)
    own = params(temperature=1.0)
    await heard(llm, own)
    await heard(llm, params(output_kind=SimpleNamespace(name="FINAL_ONLY")))
    assert llm.asked[0] is own
    reply = witness.served()
    assert (reply.answers, reply.answer_tokens, len(reply.picked)) == (2, 6, 0)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"n": 2}, {}),
        ({"logprobs": -1}, {}),
        ({"logprob_token_ids": [1]}, {}),
        ({}, {"lora_request": object()}),
    ],
)
async def test_what_cannot_be_compared_is_not_picked(change: dict[str, Any], options: dict[str, Any]) -> None:
    llm = Llm()
    witness = watching(llm, 1.0)
    await heard(llm, params(**change), **options)
    assert not witness.served().picked


@pytest.mark.parametrize(
    "change",
    [
        {"presence_penalty": 0.5},
        {"repetition_penalty": 1.1},
        {"min_tokens": 4},
        {"logit_bias": {1: 2.0}},
        {"structured_outputs": object()},
        {"bad_words": ["no"]},
    ],
)
async def test_greedy_with_conditions_claims_nothing_of_the_likeliest(change: dict[str, Any]) -> None:
    llm = Llm()
    witness = watching(llm, 1.0)
    await heard(llm, params(**change))
    [picked] = witness.served().picked
    assert not picked.is_likeliest
    assert len(picked.logprobs) == 3


async def test_an_answer_that_is_broken_off_counts_as_far_as_it_came() -> None:
    llm = Llm()
    witness = watching(llm, 1.0)
    outputs = llm.generate({}, params(), "id")
    await anext(outputs)
    await outputs.aclose()
    reply = witness.served()
    assert (reply.answers, reply.answer_tokens, list(reply.picked[0].token_ids)) == (1, 1, [7])


async def test_an_answer_of_two_clusters_is_held_against_neither() -> None:
    llm = Llm()
    witness = watching(llm, 1.0)
    outputs = llm.generate({}, params(), "id")
    await anext(outputs)
    witness.moved(())
    witness.moved(("10.88.0.2",))
    assert len([output async for output in outputs]) == 2
    reply = witness.served()
    assert (reply.answers, len(reply.picked)) == (1, 0)


async def test_what_waits_is_bounded() -> None:
    llm = Llm()
    witness = watching(llm, 1.0)
    for _ in range(KEPT + 5):
        await heard(llm, params())
    assert len(witness.served().picked) == KEPT


@pytest.mark.parametrize("positions", [[], [3], [0] * 65])
async def test_scoring_is_bounded(positions: list[int]) -> None:
    witness = watching(Llm(), 0.0)
    with pytest.raises(InvalidScoring):
        await witness.score(pb.ScoreRequest(prompt_ids=[1], token_ids=[7, 8, 9], positions=positions))
