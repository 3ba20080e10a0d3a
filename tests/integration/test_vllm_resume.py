"""Answers that survive the loss of members: the same as undisturbed ones, token for token, over other members."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest

from edgellm.wire import backend_pb2 as pb
from tests.integration.test_vllm_backend import LAYERS, MODEL, command_line, descendants
from tests.integration.vllm_cluster import (
    HEAD,
    MODEL_PATH,
    Cluster,
    cluster,
    wait_for_event,
    worker_address,
)

pytestmark = pytest.mark.root

MAX_MODEL_LEN = 512
TOKENS = 300
FROM_1_TO_2 = ((1, 0, 3), (2, 3, LAYERS))
FROM_1_TO_3 = ((1, 0, 5), (3, 5, LAYERS))
ON_3_ALONE = ((3, 0, LAYERS),)

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 120},
        "numbers": {"type": "array", "items": {"type": "integer"}, "minItems": 12, "maxItems": 40},
    },
    "required": ["name", "numbers"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "note", "parameters": SCHEMA}}
PROMPT = "The import statement"


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """A head and three hosts with one rank each, of which the first two are loaded."""
    with cluster([1, 1, 1], MODEL, standby=True) as members:
        wait_for_event(members, 0, "serving", 60)
        load(members, FROM_1_TO_2)
        for member in (1, 2, 3):
            wait_for_event(members, member, "warm", 60)
        yield members


def load_request(stages: tuple[tuple[int, int, int], ...], **options: Any) -> pb.LoadRequest:
    """`stages`: member, first layer, end layer."""
    placed = [
        pb.Stage(address=worker_address(member), first_layer=first, end_layer=end)
        for member, first, end in stages
    ]
    known = {"model_path": MODEL_PATH, "head_address": HEAD, "tensor_parallel": 1, "stages": placed}
    known |= {"max_model_len": MAX_MODEL_LEN, "kv_cache_bytes": 64 << 20, "max_num_seqs": 16}
    return pb.LoadRequest(**{**known, "serve_api": True, "served_model_name": "tiny", **options})


def load(members: Cluster, stages: tuple[tuple[int, int, int], ...]) -> float:
    """Seconds that it took."""
    begun = time.monotonic()
    events = list(members.stub.Load(load_request(stages), timeout=150))
    really = [(rank.address, rank.first_layer, rank.end_layer) for rank in events[-1].loaded.ranks]
    assert really == [(worker_address(member), first, end) for member, first, end in stages]
    return time.monotonic() - begun


def state(members: Cluster) -> int:
    return members.stub.Health(pb.HealthRequest(), timeout=5).state


def suspend(members: Cluster) -> int:
    waiting: int = members.stub.Suspend(pb.SuspendRequest(), timeout=20).waiting_requests
    assert state(members) == pb.HealthReply.SUSPENDED
    return waiting


@dataclass
class Answer:
    """One that is being streamed."""

    events: list[pb.GenerateEvent] = field(default_factory=list)
    came: list[float] = field(default_factory=list)
    done: Future[None] | None = None
    call: Any = None

    @property
    def tokens(self) -> list[int]:
        return [token for event in tuple(self.events) for token in event.token_ids]

    def whole(self) -> tuple[list[int], str, list[float], int, str]:
        """Token ids, text, logprobs, prompt tokens and finish reason, once it is finished."""
        assert self.done is not None
        self.done.result(timeout=60)
        text = "".join(event.text for event in self.events)
        logprobs = [logprob for event in self.events for logprob in event.logprobs]
        last = self.events[-1]
        return self.tokens, text, logprobs, last.prompt_tokens, last.finish_reason

    def reached(self, count: int) -> None:
        wait_until(lambda: len(self.tokens) >= count, f"{count} tokens")


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


_POOL = ThreadPoolExecutor(64)
_NUMBER = iter(range(1 << 30))


def ask(members: Cluster, **sampling: Any) -> Answer:
    options = {"max_tokens": TOKENS, "ignore_eos": True, **sampling}
    request = pb.GenerateRequest(
        request_id=f"resumed-{next(_NUMBER)}", text=PROMPT, sampling=pb.SamplingParams(**options)
    )
    answer = Answer(call=members.stub.Generate(request, timeout=120))

    def read() -> None:
        for event in answer.call:
            answer.events.append(event)
            answer.came.append(time.monotonic())

    answer.done = _POOL.submit(read)
    return answer


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "logprobs": {"logprobs": True},
    "seeded": {"temperature": 0.9, "top_p": 0.95, "seed": 7},
    "penalties": {
        "temperature": 0.8,
        "seed": 3,
        "presence_penalty": 0.9,
        "frequency_penalty": 0.6,
        "repetition_penalty": 1.2,
    },
}


@pytest.fixture(scope="module")
def undisturbed(running: Cluster) -> dict[str, tuple[list[int], str, list[float], int, str]]:
    return {kind: ask(running, **sampling).whole() for kind, sampling in KINDS.items()}


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """Exactly, but for the last bits of logprobs: a prompt's are summed in another order than a token's."""
    assert one[0] == other[0]
    assert one[1] == other[1]
    assert one[2] == pytest.approx(other[2], abs=1e-3)
    assert one[3:] == other[3:]


@pytest.mark.parametrize(
    ("at", "over"), [(1, FROM_1_TO_3), (60, ON_3_ALONE), (150, FROM_1_TO_2)], ids=["first", "one", "late"]
)
def test_answers_of_all_kinds_go_on_over_other_members(
    running: Cluster,
    undisturbed: dict[str, tuple[list[int], str, list[float], int, str]],
    at: int,
    over: tuple[tuple[int, int, int], ...],
) -> None:
    answers = {kind: ask(running, **sampling) for kind, sampling in KINDS.items()}
    answers["greedy"].reached(at)
    suspended = time.monotonic()
    assert suspend(running) > 0
    so_far = len(answers["greedy"].tokens)
    assert at <= so_far < TOKENS
    # One that comes in the pause waits, too.
    late = ask(running, **KINDS["seeded"])
    load_s = load(running, over)
    for kind, answer in answers.items():
        same(answer.whole(), undisturbed[kind])
    same(late.whole(), undisturbed["seeded"])
    next_token = next(moment for moment in answers["greedy"].came if moment > suspended + 0.1)
    print(f"after {at}: next token {next_token - suspended:.2f} s after Suspend, Load took {load_s:.2f} s")


def test_a_stop_text_is_found_across_the_seam(
    running: Cluster, undisturbed: dict[str, tuple[list[int], str, list[float], int, str]]
) -> None:
    text = undisturbed["greedy"][1]
    # A text that comes first about where the answer is interrupted, and one that never ends the answer by itself.
    start = next(start for start in range(200, 600) if text.index(text[start : start + 12]) == start)
    stop = text[start : start + 12]
    answer = ask(running, stop=[stop])
    answer.reached(1)
    wait_until(
        lambda: sum(len(event.text) for event in tuple(answer.events)) > start - 90, "half of the text"
    )
    suspend(running)
    load(running, FROM_1_TO_2)
    _, whole, _, _, reason = answer.whole()
    assert (whole, reason) == (text[:start], "stop")


def chat(members: Cluster, **options: Any) -> list[dict[str, Any]]:
    """The events of a streamed answer of the API: what is said of choices, usage and errors."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 200,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }
    transport = httpx.HTTPTransport(uds=str(members.directory / "api.sock"))
    with httpx.Client(transport=transport, base_url="http://engine", timeout=120) as client:  # noqa: SIM117
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200, answer.read()
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def told(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What an answer of the API comes to, by choice, and its usage."""
    said: dict[str, Any] = {"usage": [event["usage"] for event in events if event.get("usage")][-1]}
    for event in events:
        for choice in event["choices"]:
            own = said.setdefault(f"choice {choice['index']}", {"text": "", "arguments": "", "tokens": []})
            delta = choice["delta"]
            own["text"] += delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                own["name"] = call["function"].get("name") or own.get("name")
                own["arguments"] += call["function"].get("arguments") or ""
            for token in (choice.get("logprobs") or {}).get("content") or ():
                own["tokens"].append((token["token"], pytest.approx(token["logprob"], abs=1e-3)))
            own["finish"] = choice.get("finish_reason") or own.get("finish")
    return said


HTTP: dict[str, dict[str, Any]] = {
    "schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}},
        "temperature": 0.7,
        "seed": 11,
    },
    "tool": {
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "note"}},
        "temperature": 0,
    },
    "choices": {"n": 2, "temperature": 0.9, "seed": 5},
    "logprobs": {"logprobs": True, "top_logprobs": 2, "temperature": 0},
}


def test_streams_of_the_api_go_on_in_the_same_response(running: Cluster) -> None:
    expected = {kind: told(chat(running, **options)) for kind, options in HTTP.items()}
    assert json.loads(expected["schema"]["choice 0"]["text"])["numbers"]
    assert len(expected["choices"]) == 3
    answers = {kind: _POOL.submit(chat, running, **options) for kind, options in HTTP.items()}
    marker = ask(running)
    marker.reached(50)
    # All four, of which one has two choices, and the marker.
    assert suspend(running) == 6
    load(running, FROM_1_TO_3)
    for kind, answer in answers.items():
        assert told(answer.result(timeout=60)) == expected[kind], kind
    marker.whole()


def test_who_leaves_in_the_pause_is_not_asked_for(running: Cluster) -> None:
    leaves, aborted, stays = (ask(running) for _ in range(3))
    stays.reached(20)
    assert suspend(running) == 3
    leaves.call.cancel()
    wait_until(
        lambda: running.stub.Health(pb.HealthRequest(), timeout=5).running_requests == 2, "its leaving"
    )
    assert suspend(running) == 2
    load(running, FROM_1_TO_3)
    stays.reached(100)
    aborted.call.cancel()
    assert stays.whole()[4] == "length"
    wait_until(lambda: not running.stub.Health(pb.HealthRequest(), timeout=5).running_requests, "the end")


def test_a_load_that_cannot_be_is_ended_and_followed_by_another(
    running: Cluster, undisturbed: dict[str, tuple[list[int], str, list[float], int, str]]
) -> None:
    for wrong, code in (
        (load_request(FROM_1_TO_2), grpc.StatusCode.FAILED_PRECONDITION),
        (load_request(FROM_1_TO_2, model_path="/other"), grpc.StatusCode.INVALID_ARGUMENT),
        (load_request(FROM_1_TO_2, max_model_len=100), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            list(running.stub.Load(wrong, timeout=20))
        assert caught.value.code() == code
        if code == grpc.StatusCode.FAILED_PRECONDITION:
            answer = ask(running)
            answer.reached(10)
            suspend(running)
    # Nobody has this address: the bring-up would wait for two minutes.
    never = running.stub.Load(load_request(((9, 0, LAYERS),)), timeout=60)
    assert next(never).phase.name == "import"
    time.sleep(1)
    assert state(running) == pb.HealthReply.LOADING
    begun = time.monotonic()
    assert suspend(running) == 1
    assert time.monotonic() - begun < 5
    with pytest.raises(grpc.RpcError) as caught:
        list(never)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    load(running, FROM_1_TO_2)
    same(answer.whole(), undisturbed["greedy"])


def ranks(members: Cluster, member: int) -> list[int]:
    return [pid for pid in descendants(members.members[member].pid) if "RayWorkerProc" in command_line(pid)]


def lost(members: Cluster) -> list[dict[str, Any]]:
    return [event for event in members.events(0) if event["event"] == "lost"]


def test_a_rank_that_dies_is_told_of_and_its_member_runs_the_next_one(
    running: Cluster, undisturbed: dict[str, tuple[list[int], str, list[float], int, str]]
) -> None:
    before = len(lost(running))
    answer = ask(running, **KINDS["seeded"])
    answer.reached(30)
    (pid,) = ranks(running, 2)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(lost(running)) > before, "the word of it", 1.5)
    assert lost(running)[-1]["address"] == worker_address(2)
    assert state(running) == pb.HealthReply.SUSPENDED
    load(running, FROM_1_TO_2)
    same(answer.whole(), undisturbed["seeded"])
    assert len(lost(running)) == before + 1


def test_a_rank_that_is_frozen_is_told_of_and_one_that_is_busy_is_not(
    running: Cluster, undisturbed: dict[str, tuple[list[int], str, list[float], int, str]]
) -> None:
    before = len(lost(running))
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        # Slow it is: a token is several wake-ups, each of which waits for its turn.
        assert ask(running, max_tokens=40).whole()[0] == undisturbed["greedy"][0][:40]
        assert state(running) == pb.HealthReply.READY
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert len(lost(running)) == before
    answer = ask(running)
    answer.reached(10)
    (pid,) = ranks(running, 2)
    os.kill(pid, signal.SIGSTOP)
    frozen = time.monotonic()
    wait_until(lambda: len(lost(running)) > before, "the word of it", 7)
    assert time.monotonic() - frozen > 2
    assert lost(running)[-1]["address"] == worker_address(2)
    load(running, FROM_1_TO_3)
    same(answer.whole(), undisturbed["greedy"])
    assert len(lost(running)) == before + 1


def test_nothing_of_dead_engines_is_left(running: Cluster) -> None:
    wait_until(lambda: len(ranks(running, 1)) == 1, "the last engine's rank to be the only one")
    assert len(ranks(running, 3)) == 1
    cores = [pid for pid in descendants(running.members[0].pid) if "EngineCore" in command_line(pid)]
    assert len(cores) <= 1
