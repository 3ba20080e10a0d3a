"""Where requests' time goes, on stand-ins for vLLM's classes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("edgellm_vllm", reason="the distribution in backends/vllm is not installed")
pytest.importorskip("prometheus_client")

from edgellm_vllm.figures import Figures
from edgellm_vllm.spent import MAX_REQUESTS, Ledger
from edgellm_vllm.stage_clock import StageClock, stamp, stamped
from edgellm_vllm.timed_app import TimedApp
from edgellm_vllm.timings import CURRENT, KEPT, Timings


def output(tokens: int, *, finished: bool = False, first: float = 10.5, last: float = 10.5) -> Any:
    """As vLLM's RequestOutput."""
    stats = SimpleNamespace(queued_ts=10.0, scheduled_ts=10.1, first_token_ts=first, last_token_ts=last)
    return SimpleNamespace(
        outputs=[SimpleNamespace(token_ids=list(range(tokens)))],
        prompt_token_ids=[1, 2, 3],
        num_cached_tokens=2,
        finished=finished,
        metrics=stats,
    )


def llm(*outputs: Any) -> Any:
    async def generate(prompt: Any, sampling: Any, request_id: str, **options: Any) -> AsyncIterator[Any]:
        for one in outputs:
            yield one

    return SimpleNamespace(generate=generate)


@pytest.fixture
def timings() -> Timings:
    return Timings(Figures("tiny"), ["10.88.0.2", "10.88.0.3"])


async def ask(timings: Timings, engine: Any, request_id: str = "abc") -> None:
    timings.watch(engine)
    async for _ in engine.generate("why", None, request_id):
        pass


async def test_an_answer_is_queue_prefill_and_decode(timings: Timings) -> None:
    await ask(timings, llm(output(1), output(1, finished=True, last=11.5)))
    report = timings.report("abc")
    assert report is not None
    assert report["queue_s"] == pytest.approx(0.1)
    assert report["prefill_s"] == pytest.approx(0.4)
    assert report["decode_s"] == pytest.approx(1.0)
    assert (report["prompt_tokens"], report["cached_prompt_tokens"], report["output_tokens"]) == (3, 2, 2)
    assert len(report["token_s"]) == 2
    assert (report["stages"], report["network_s"]) == ([], None)


async def test_what_stages_computed_is_told_apart_from_the_way_between_them(timings: Timings) -> None:
    await ask(timings, llm(output(1), output(1, finished=True, last=11.5)))
    timings.spent(json.dumps([["abc-0123abcd", [0.1, 0.2], [0.3, 0.5], True]]))
    report = timings.report("abc")
    assert report is not None
    assert [stage["address"] for stage in report["stages"]] == ["10.88.0.2", "10.88.0.3"]
    assert [stage["decode_s"] for stage in report["stages"]] == [0.3, 0.5]
    assert report["network_s"]["prefill_s"] == pytest.approx(0.1)
    assert report["network_s"]["decode_s"] == pytest.approx(0.2)


async def test_of_steps_that_told_nothing_no_network_is_made(timings: Timings) -> None:
    await ask(timings, llm(output(1, finished=True)))
    timings.spent(json.dumps([["abc-0123abcd", [0.1, 0.2], [], False]]))
    report = timings.report("abc")
    assert report is not None
    assert [(stage["prefill_s"], stage["decode_s"]) for stage in report["stages"]] == [
        (0.1, None),
        (0.2, None),
    ]
    assert report["network_s"] is None


async def test_where_only_the_last_stage_told_its_time_no_stage_is_said_to_have_computed_it(
    timings: Timings,
) -> None:
    await ask(timings, llm(output(1), output(1, finished=True, last=11.5)))
    timings.spent(json.dumps([["abc-0123abcd", [0.2], [0.5], True]]))
    report = timings.report("abc")
    assert report is not None
    assert [(stage["prefill_s"], stage["decode_s"]) for stage in report["stages"]] == [(None, None)] * 2
    assert report["network_s"] is None


async def test_an_answer_of_one_token_took_no_decoding(timings: Timings) -> None:
    await ask(timings, llm(output(1, finished=True)))
    timings.spent(json.dumps([["abc-0123abcd", [0.1, 0.2], [], True]]))
    report = timings.report("abc")
    assert report is not None
    assert [stage["decode_s"] for stage in report["stages"]] == [0.0, 0.0]
    assert report["network_s"]["decode_s"] == 0.0


async def test_choices_of_one_request_share_their_steps(timings: Timings) -> None:
    await ask(timings, llm(output(2, finished=True)))
    both = [
        ["0_abc-0123abcd", [0.1, 0.2], [0.5, 0.5], True],
        ["1_abc-0123abcd", [0.1, 0.2], [0.7, 0.4], True],
    ]
    timings.spent(json.dumps(both))
    report = timings.report("abc")
    assert report is not None
    assert [stage["decode_s"] for stage in report["stages"]] == [0.7, 0.5]


async def test_only_the_last_requests_are_kept(timings: Timings) -> None:
    engine = llm(output(1, finished=True))
    timings.watch(engine)
    for number in range(KEPT + 1):
        async for _ in engine.generate("why", None, f"r{number}"):
            pass
    assert timings.report("r0") is None
    assert timings.report("r1") is not None
    timings.spent(json.dumps([["r0-0123abcd", [1.0], [1.0], True]]))


async def test_figures_are_of_answers_that_came_to_their_end() -> None:
    figures = Figures("tiny")
    timings = Timings(figures, [])
    engine = llm(output(1), output(1, finished=True, last=11.5))
    timings.watch(engine)
    async for _ in engine.generate("why", None, "left"):
        break
    labels = (
        'gen_ai_operation_name="generate_content",gen_ai_provider_name="vllm",gen_ai_request_model="tiny"'
    )
    assert f"gen_ai_server_request_duration_seconds_count{{{labels}}}" not in figures.text().decode()
    await ask(timings, llm(output(1), output(1, finished=True, last=11.5)))
    text = figures.text().decode()
    assert f"gen_ai_server_request_duration_seconds_count{{{labels}}} 1.0" in text
    assert f"gen_ai_server_time_per_output_token_seconds_sum{{{labels}}} 1.0" in text
    assert f'gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type="output"}} 2.0' in text


def test_a_ledger_tells_prompts_from_answers() -> None:
    ledger = Ledger()
    ledger.begin(["a", "b"])
    ledger.step(["a"], (0.1, 0.2), sampled=set())
    ledger.step(["a", "b"], (0.1, 0.2), sampled={"a", "b"})
    ledger.step(["a"], (0.01, 0.02), sampled={"a"})
    ((name, spent),) = ledger.finished(["a", "nobody"])
    assert name == "a"
    assert spent.prefill_s == pytest.approx([0.2, 0.4])
    assert spent.decode_s == pytest.approx([0.01, 0.02])
    assert spent.whole
    ledger.step(["b"], ())
    ((_, other),) = ledger.finished(["b"])
    assert not other.whole


def test_a_step_that_ends_after_its_request_leaves_nothing() -> None:
    ledger = Ledger()
    ledger.begin(["a"])
    assert len(ledger.finished(["a"])) == 1
    ledger.step(["a"], (0.1,))
    assert ledger.finished(["a"]) == []


def test_a_ledger_is_bounded() -> None:
    ledger = Ledger()
    ledger.begin([str(number) for number in range(MAX_REQUESTS + 5)])
    assert len(ledger.finished(str(number) for number in range(MAX_REQUESTS + 5))) == MAX_REQUESTS


def test_each_stage_adds_its_time_to_those_before_it() -> None:
    clock = StageClock()
    clock.begin()
    (first,) = clock.spent_s()
    clock.received((first,))
    spent = clock.spent_s()
    assert spent[0] == first
    assert len(spent) == 2
    empty, full = SimpleNamespace(req_ids=[]), SimpleNamespace(req_ids=["a"])
    stamp(empty, spent)
    stamp(full, spent)
    assert (stamped(empty), stamped(full)) == ((), spent)


async def answer(
    timings: Timings, app: Any, path: str = "/v1/chat/completions", **headers: str
) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await TimedApp(app, timings)({"type": "http", "path": path, "headers": raw}, None, send)
    return sent


def app_of(timings: Timings, *bodies: bytes, kind: bytes = b"application/json") -> Any:
    engine = llm(output(1), output(1, finished=True, last=11.5))
    timings.watch(engine)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        assert CURRENT.get() is not None
        async for _ in engine.generate("why", None, "chatcmpl-x"):
            if bodies[1:]:
                await send({"type": "http.response.body", "body": bodies[0], "more_body": True})
        await send({"type": "http.response.body", "body": bodies[-1], "more_body": False})

    return app


async def test_a_whole_answer_says_its_times_in_its_head(timings: Timings) -> None:
    head, body = await answer(timings, app_of(timings, b"{}"), x_request_id="mine")
    headers = dict(head["headers"])
    assert headers[b"x-request-id"] == b"mine"
    assert headers[b"server-timing"] == b"queue;dur=100.0, prefill;dur=400.0, decode;dur=1000.0"
    assert body["body"] == b"{}"
    assert timings.report("mine") is not None


async def test_a_streamed_answer_says_the_rest_at_its_end(timings: Timings) -> None:
    app = app_of(timings, b"data: 1\n\n", b"", kind=b"text/event-stream; charset=utf-8")
    head, *_, last = await answer(timings, app)
    headers = dict(head["headers"])
    assert headers[b"server-timing"] == b"queue;dur=100.0, prefill;dur=400.0"
    assert last["body"] == b": server-timing queue;dur=100.0, prefill;dur=400.0, decode;dur=1000.0\n\n"
    assert len(headers[b"x-request-id"]) == 32


async def test_an_id_that_could_be_anything_is_replaced(timings: Timings) -> None:
    for bad in ("", "a b", "x" * 129, "ä"):
        head, _ = await answer(timings, app_of(timings, b"{}"), x_request_id=bad)
        assert dict(head["headers"])[b"x-request-id"] != bad.encode()


async def test_other_paths_are_left_alone(timings: Timings) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    assert (await answer(timings, app, "/v1/models"))[0]["headers"] == []
