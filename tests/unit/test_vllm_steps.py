"""Which of vLLM's steps the ranks are told of, on stand-ins for its classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("edgellm_vllm", reason="the distribution in backends/vllm is not installed")

from edgellm_vllm.steps import Constrained, Transfers, WholeSteps, says_nothing


@dataclass
class Step:
    """As vLLM's SchedulerOutput, in a few fields of each sort."""

    scheduled_new_reqs: list[Any] = field(default_factory=list)
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    total_num_scheduled_tokens: int = 0
    finished_req_ids: set[str] = field(default_factory=set)
    has_structured_output_requests: bool = False
    new_block_ids_to_zero: list[int] | None = None
    num_common_prefix_blocks: list[int] = field(default_factory=list)
    kv_connector_metadata: Any = None

    @classmethod
    def make_empty(cls) -> Step:
        return cls()


def new_request(name: str, grammar: object = None) -> SimpleNamespace:
    return SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(structured_outputs=grammar))


def test_only_a_step_without_any_news_says_nothing() -> None:
    assert says_nothing(Step())
    assert says_nothing(Step(new_block_ids_to_zero=[]))
    assert not says_nothing(Step(total_num_scheduled_tokens=1, num_scheduled_tokens={"a": 1}))
    assert not says_nothing(Step(finished_req_ids={"a"}))
    assert not says_nothing(Step(new_block_ids_to_zero=[7]))
    assert not says_nothing(Step(num_common_prefix_blocks=[1]))


def test_a_connector_that_begins_loads_or_stores_is_heard() -> None:
    idle = SimpleNamespace(requests=[], need_flush_before_forward=False)
    assert says_nothing(Step(kv_connector_metadata=idle))
    assert not says_nothing(
        Step(kv_connector_metadata=SimpleNamespace(requests=["load"], need_flush_before_forward=False))
    )
    assert not says_nothing(
        Step(kv_connector_metadata=SimpleNamespace(requests=[], need_flush_before_forward=True))
    )
    # Another connector's metadata may mean anything.
    assert not says_nothing(Step(kv_connector_metadata=SimpleNamespace()))


def test_a_field_of_a_later_vllm_is_news_until_it_is_empty() -> None:
    step = Step()
    step.later = {"unknown"}  # type: ignore[attr-defined]
    Step.later = None  # type: ignore[attr-defined]
    try:
        assert not says_nothing(step)
    finally:
        del Step.later  # type: ignore[attr-defined]


def test_a_request_with_a_grammar_is_known_until_it_has_finished() -> None:
    constrained = Constrained()
    first = Step(
        scheduled_new_reqs=[new_request("a", "json"), new_request("b")], num_scheduled_tokens={"a": 5, "b": 5}
    )
    assert constrained.any_in(first)
    assert constrained.any_in(Step(num_scheduled_tokens={"a": 1, "b": 1}))
    assert not constrained.any_in(Step(num_scheduled_tokens={"b": 1}))
    assert constrained.any_in(Step(num_scheduled_tokens={"a": 1}))
    assert not constrained.any_in(Step(num_scheduled_tokens={"b": 1}, finished_req_ids={"a"}))
    again = Step(scheduled_new_reqs=[new_request("a")], num_scheduled_tokens={"a": 5})
    assert not constrained.any_in(again)
    assert constrained.any_in(Step(has_structured_output_requests=True))


def test_a_pooling_request_has_no_grammar() -> None:
    pooled = SimpleNamespace(req_id="a", sampling_params=None)
    assert not Constrained().any_in(Step(scheduled_new_reqs=[pooled], num_scheduled_tokens={"a": 5}))


@pytest.mark.parametrize(("result", "sampled"), [(None, True), ("nothing was scheduled", False)])
def test_a_rank_samples_where_the_model_has_run(result: object, sampled: bool) -> None:
    class Rank(WholeSteps):
        def execute_model(self, step: object) -> object:
            return result

        def sample_tokens(self, grammar: object) -> str:
            assert grammar is None
            return "tokens"

    assert Rank().edgellm_step(Step()) == ("tokens" if sampled else result)  # type: ignore[arg-type]


def test_ranks_are_asked_while_a_load_or_a_store_is_under_way() -> None:
    def reported(*, sending: set[str] | None = None, recving: set[str] | None = None) -> SimpleNamespace:
        return SimpleNamespace(
            kv_connector_output=SimpleNamespace(finished_sending=sending, finished_recving=recving)
        )

    transfers = Transfers()
    transfers.sent(Step())
    assert not transfers.under_way
    transfers.sent(Step(kv_connector_metadata=SimpleNamespace(requests=[SimpleNamespace(request_id="a")])))
    assert transfers.under_way
    transfers.reported(None)
    transfers.reported(SimpleNamespace(kv_connector_output=None))
    transfers.reported(reported(recving={"b"}))
    assert transfers.under_way
    transfers.reported(reported(recving={"a"}))
    assert not transfers.under_way
    # The blocks of a finished request are kept until its last store is done.
    transfers.sent(Step(finished_req_ids={"a"}))
    assert transfers.under_way
    transfers.reported(reported(sending={"a"}))
    assert not transfers.under_way
