"""The vLLM backend alone: a head without weights and workers in namespaces of their own, asked over gRPC."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from edgellm.wire import backend_pb2 as pb
from tests.integration.vllm_cluster import (
    HEAD,
    MODEL_PATH,
    Cluster,
    cluster,
    stages,
    wait_for_event,
    worker_address,
)
from tests.system.solo import Solo, SoloAnswer

pytestmark = pytest.mark.root

MODEL = Path(__file__).parents[2] / "models" / "tiny"
LAYERS = 8
MAX_MODEL_LEN = 256
ANSWER_TOKENS = 48
PROMPTS = ("The import statement", "A class definition", "Exceptions are", "The value of an expression")


@pytest.fixture(scope="module")
def alone() -> tuple[SoloAnswer, ...]:
    """What vLLM says to `PROMPTS` in one process."""
    return Solo().answers(MODEL, PROMPTS, ANSWER_TOKENS, max_model_len=MAX_MODEL_LEN, ignore_eos=True)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[tuple[Cluster, list[pb.LoadEvent]]]:
    """Two hosts with one rank each, loaded with layers 0 to 3 and 3 to 8."""
    with cluster([1, 1], MODEL) as running:
        wait_for_event(running, 0, "serving", 30)
        # Serving means now, long before vLLM is imported.
        assert running.stub.Health(pb.HealthRequest(), timeout=5).state == pb.HealthReply.STARTING
        yield running, load(running, 1, (0, 3), (3, LAYERS))


@pytest.fixture(scope="module")
def shards() -> Iterator[tuple[Cluster, list[pb.LoadEvent]]]:
    """One host with two tensor-parallel ranks."""
    with cluster([2], MODEL) as running:
        wait_for_event(running, 0, "serving", 30)
        yield running, load(running, 2, (0, LAYERS))


def load(running: Cluster, tensor_parallel: int, *layers: tuple[int, int]) -> list[pb.LoadEvent]:
    request = pb.LoadRequest(
        model_path=MODEL_PATH,
        head_address=HEAD,
        tensor_parallel=tensor_parallel,
        stages=stages(*layers),
        max_model_len=MAX_MODEL_LEN,
        kv_cache_bytes=64 << 20,
        max_num_seqs=8,
    )
    return list(running.stub.Load(request, timeout=150))


def question(name: str, prompt: str, **sampling: object) -> pb.GenerateRequest:
    options: dict[str, object] = {"max_tokens": ANSWER_TOKENS, "ignore_eos": True, **sampling}
    return pb.GenerateRequest(request_id=name, text=prompt, sampling=pb.SamplingParams(**options))  # type: ignore[arg-type]


def answer(running: Cluster, request: pb.GenerateRequest) -> tuple[list[int], str, str]:
    """(token ids, text, finish reason) of a whole answer."""
    events = list(running.stub.Generate(request, timeout=60))
    tokens = [token for event in events for token in event.token_ids]
    return tokens, "".join(event.text for event in events), events[-1].finish_reason


def refusal(running: Cluster, request: pb.GenerateRequest) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        list(running.stub.Generate(request, timeout=60))
    return caught.value


def wait_until_idle(running: Cluster, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while running.stub.Health(pb.HealthRequest(), timeout=5).running_requests:
        assert time.monotonic() < deadline, "a request is still running"
        time.sleep(0.02)


def placement(events: Sequence[pb.LoadEvent]) -> list[tuple[int, str, int, int]]:
    ranks = events[-1].loaded.ranks
    return [(rank.rank, rank.address, rank.first_layer, rank.end_layer) for rank in ranks]


def test_load_tells_its_phases_and_what_runs_where(pipeline: tuple[Cluster, list[pb.LoadEvent]]) -> None:
    running, events = pipeline
    phases = [event.phase.name for event in events[:-1]]
    assert phases[:2] == ["import", "config"]
    assert phases[-3:] == ["workers", "kv cache", "placement"]
    assert "cluster" in phases
    assert placement(events) == [(0, worker_address(1), 0, 3), (1, worker_address(2), 3, LAYERS)]
    assert events[-1].loaded.kv_cache_tokens >= MAX_MODEL_LEN
    assert running.stub.Health(pb.HealthRequest(), timeout=5).state == pb.HealthReply.READY
    assert any(entry["event"] == "joined" for entry in running.events(1))


def test_a_pipeline_over_two_hosts_says_what_one_process_says(
    pipeline: tuple[Cluster, list[pb.LoadEvent]], alone: tuple[SoloAnswer, ...]
) -> None:
    for index, prompt in enumerate(PROMPTS):
        tokens, text, reason = answer(pipeline[0], question(f"same-{index}", prompt))
        assert (tuple(tokens), text, reason) == (alone[index].token_ids, alone[index].text, "length")


def test_concurrent_answers_do_not_mix(
    pipeline: tuple[Cluster, list[pb.LoadEvent]], alone: tuple[SoloAnswer, ...]
) -> None:
    requests = [question(f"at-once-{index}", PROMPTS[index % 4]) for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda request: answer(pipeline[0], request), requests))
    # Batched sums may differ in late bits; a mixed-up stream differs from its first tokens on.
    for index, (tokens, _, _) in enumerate(answers):
        assert len(tokens) == ANSWER_TOKENS
        assert tuple(tokens[:16]) == alone[index % 4].token_ids[:16]


def test_what_cannot_work_is_refused_and_says_why(pipeline: tuple[Cluster, list[pb.LoadEvent]]) -> None:
    running, _ = pipeline
    cases = {
        "the prompt is empty": question("empty", ""),
        "the context holds 256": question("long", "word " * 400),
        "top_p must be between 0 and 1": question("top-p", "Hello", top_p=1.5),
        "temperature must be": question("temperature", "Hello", temperature=-1.0),
        "outside the model's vocabulary": pb.GenerateRequest(
            request_id="vocabulary", tokens=pb.Tokens(ids=[1 << 30]), sampling=pb.SamplingParams(max_tokens=1)
        ),
        "request id '' is empty": question("", "Hello"),
    }
    for message, request in cases.items():
        error = refusal(running, request)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, message
        assert message in str(error.details())
    assert answer(running, question("after-refusals", PROMPTS[0], max_tokens=4))[2] == "length"


def test_a_prompt_as_long_as_fits_gets_the_room_that_is_left(
    pipeline: tuple[Cluster, list[pb.LoadEvent]],
) -> None:
    ids = [5] * (MAX_MODEL_LEN - 3)
    request = pb.GenerateRequest(
        request_id="full",
        tokens=pb.Tokens(ids=ids),
        sampling=pb.SamplingParams(max_tokens=50, ignore_eos=True),
    )
    tokens, _, reason = answer(pipeline[0], request)
    assert (len(tokens), reason) == (3, "length")


def test_cancelling_the_call_ends_the_request(pipeline: tuple[Cluster, list[pb.LoadEvent]]) -> None:
    running, _ = pipeline
    call = running.stub.Generate(question("cancelled", PROMPTS[0], max_tokens=200), timeout=60)
    next(call)
    assert running.stub.Health(pb.HealthRequest(), timeout=5).running_requests == 1
    call.cancel()
    wait_until_idle(running)
    assert len(answer(running, question("cancelled", PROMPTS[1], max_tokens=4))[0]) == 4


def test_abort_ends_the_stream_with_its_reason(pipeline: tuple[Cluster, list[pb.LoadEvent]]) -> None:
    running, _ = pipeline
    call = running.stub.Generate(question("aborted", PROMPTS[0], max_tokens=200), timeout=60)
    events = [next(call)]
    running.stub.Abort(pb.AbortRequest(request_id="aborted"), timeout=5)
    running.stub.Abort(pb.AbortRequest(request_id="never existed"), timeout=5)
    events += list(call)
    assert events[-1].finish_reason == "abort"
    assert sum(len(event.token_ids) for event in events) < 200


def test_stop_texts_and_chat(pipeline: tuple[Cluster, list[pb.LoadEvent]]) -> None:
    running, _ = pipeline
    _, text, _ = answer(running, question("unstopped", PROMPTS[0]))
    stop = text[10:14]
    _, stopped, reason = answer(running, question("stopped", PROMPTS[0], stop=[stop]))
    assert reason == "stop"
    assert stopped == text[: text.index(stop)]
    # The model has no chat template, so the message's text is the prompt.
    chat = pb.GenerateRequest(
        request_id="chat",
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=PROMPTS[0])]),
        sampling=pb.SamplingParams(max_tokens=ANSWER_TOKENS, ignore_eos=True),
    )
    assert answer(running, chat)[1] == text


def test_a_second_load_is_refused_and_unload_makes_room_for_another(
    pipeline: tuple[Cluster, list[pb.LoadEvent]], alone: tuple[SoloAnswer, ...]
) -> None:
    running, _ = pipeline
    with pytest.raises(grpc.RpcError) as caught:
        load(running, 1, (0, LAYERS))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    running.stub.Unload(pb.UnloadRequest(), timeout=30)
    assert running.stub.Health(pb.HealthRequest(), timeout=5).state == pb.HealthReply.IDLE
    assert refusal(running, question("unloaded", "Hello")).code() == grpc.StatusCode.FAILED_PRECONDITION
    events = load(running, 1, (0, 6), (6, LAYERS))
    assert placement(events) == [(0, worker_address(1), 0, 6), (1, worker_address(2), 6, LAYERS)]
    assert tuple(answer(running, question("again", PROMPTS[0]))[0]) == alone[0].token_ids


def test_two_ranks_on_one_host_say_what_one_process_says(
    shards: tuple[Cluster, list[pb.LoadEvent]], alone: tuple[SoloAnswer, ...]
) -> None:
    running, events = shards
    assert placement(events) == [(0, worker_address(1), 0, LAYERS), (1, worker_address(1), 0, LAYERS)]
    begun = time.monotonic()
    tokens, _, _ = answer(running, question("sharded", PROMPTS[0]))
    # Nothing may be compiled on the way: that takes each rank more than ten seconds, the first time.
    assert time.monotonic() - begun < 6
    assert tuple(tokens[:32]) == alone[0].token_ids[:32]


def test_a_dead_rank_suspends_the_engine_and_unload_ends_what_waits(
    shards: tuple[Cluster, list[pb.LoadEvent]],
) -> None:
    running, _ = shards
    call = running.stub.Generate(question("orphan", PROMPTS[0], max_tokens=200), timeout=60)
    events = [next(call)]
    kill_a_rank(running.members[1].pid)
    wait_for_event(running, 0, "lost", 5)
    assert running.stub.Health(pb.HealthRequest(), timeout=5).state == pb.HealthReply.SUSPENDED
    running.stub.Unload(pb.UnloadRequest(), timeout=30)
    events += list(call)
    assert events[-1].finish_reason == "abort"
    assert running.stub.Health(pb.HealthRequest(), timeout=5).state == pb.HealthReply.IDLE


def kill_a_rank(member_pid: int) -> None:
    ranks = [pid for pid in descendants(member_pid) if "RayWorkerProc" in command_line(pid)]
    os.kill(ranks[0], signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
