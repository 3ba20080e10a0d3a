"""What engines over different shapes say of each other's answers: the same; and of one with rounded weights: something else."""

from __future__ import annotations

import json
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgellm.trust.compare import Claim, Scoring, deviations, same
from edgellm.wire import backend_pb2 as pb
from tests.coarse_model import coarse_copy
from tests.integration.vllm_cluster import (
    HEAD,
    MODEL_PATH,
    Cluster,
    cluster,
    stages,
    wait_for_event,
    worker_address,
)

pytestmark = pytest.mark.root

MODEL = Path(__file__).parents[2] / "models" / "tiny"
LAYERS = 8
TOKENS = 24
POSITIONS = tuple(range(3, TOKENS, 2))
TEMPERATURES = (0.0, 0.7, 1.0)
OPENINGS = (
    "The import statement",
    "A class definition",
    "Exceptions are",
    "The value of an expression",
    "def f(x):",
)
SUBJECTS = ("in a module", "of a function", "is not", "with a list", "when it", "and the", "for each")
PROMPTS = tuple(f"{opening} {subject}" for opening in OPENINGS for subject in SUBJECTS)
"""Times three temperatures: 105 answers."""


def load(running: Cluster, tensor_parallel: int, *layers: tuple[int, int]) -> None:
    request = pb.LoadRequest(
        model_path=MODEL_PATH,
        head_address=HEAD,
        tensor_parallel=tensor_parallel,
        stages=stages(*layers),
        max_model_len=128,
        kv_cache_bytes=64 << 20,
        max_num_seqs=8,
        check_share=1.0,
    )
    wait_for_event(running, 0, "serving", 60)
    list(running.stub.Load(request, timeout=150))


def answers(running: Cluster, prompts: tuple[str, ...]) -> list[pb.PickedAnswer]:
    """What the cluster says to the prompts at each of `TEMPERATURES`, as it is picked for checks."""

    def ask(question: tuple[str, float]) -> None:
        prompt, temperature = question
        sampling = pb.SamplingParams(max_tokens=TOKENS, temperature=temperature, ignore_eos=True)
        request = pb.GenerateRequest(request_id=secrets.token_hex(8), text=prompt, sampling=sampling)
        events = list(running.stub.Generate(request, timeout=60))
        assert not any(event.logprobs for event in events), "nobody asked for them"

    questions = [(prompt, temperature) for temperature in TEMPERATURES for prompt in prompts]
    picked: list[pb.PickedAnswer] = []
    with ThreadPoolExecutor(4) as pool:
        for begin in range(0, len(questions), 8):
            list(pool.map(ask, questions[begin : begin + 8]))
            picked += running.stub.Served(pb.ServedRequest(), timeout=5).picked
    assert len(picked) == len(questions)
    return picked


def scored(running: Cluster, given: list[pb.PickedAnswer]) -> list[Scoring]:
    def score(answer: pb.PickedAnswer) -> Scoring:
        request = pb.ScoreRequest(
            prompt_ids=answer.prompt_ids, token_ids=answer.token_ids, positions=POSITIONS
        )
        scores = running.stub.Score(request, timeout=60).scores
        return Scoring(tuple(one.logprob for one in scores), tuple(one.likeliest_logprob for one in scores))

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(score, given))


def claim(answer: pb.PickedAnswer) -> Claim:
    return Claim(None if answer.is_likeliest else tuple(answer.logprobs[at] for at in POSITIONS))


@pytest.fixture(scope="module")
def honest() -> list[pb.PickedAnswer]:
    """Of a pipeline over two hosts."""
    with cluster([1, 1], MODEL) as running:
        load(running, 1, (0, 3), (3, LAYERS))
        given = answers(running, PROMPTS)
        served = running.stub.Served(pb.ServedRequest(), timeout=5)
        assert (served.answers, served.answer_tokens) == (len(given), len(given) * TOKENS)
        assert not served.picked
        assert all(list(one.addresses) == [worker_address(1), worker_address(2)] for one in given)
    return given


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> list[pb.PickedAnswer]:
    """Of a host that computes with four bits a weight."""
    directory = coarse_copy(MODEL, tmp_path_factory.mktemp("coarse") / "tiny", bits=4)
    with cluster([1], directory) as running:
        load(running, 1, (0, LAYERS))
        return answers(running, PROMPTS[::3])


def keep(name: str, given: list[pb.PickedAnswer], scorings: list[Scoring]) -> None:
    """The figures of docs/decisions/0020-trust.md, where EDGELLM_ARTEFACTS says."""
    if directory := os.environ.get("EDGELLM_ARTEFACTS"):
        rows: list[dict[str, Any]] = [
            {"greedy": answer.is_likeliest, "nats": deviations(claim(answer), scoring)}
            for answer, scoring in zip(given, scorings, strict=True)
        ]
        Path(directory, f"spot-check-{name}.json").write_text(json.dumps(rows))


def test_one_process_bears_a_pipeline_out_and_not_rounded_weights(
    honest: list[pb.PickedAnswer], rounded: list[pb.PickedAnswer]
) -> None:
    with cluster([1], MODEL) as running:
        load(running, 1, (0, LAYERS))
        of_honest, of_rounded = scored(running, honest), scored(running, rounded)
    keep("pp2-by-pp1", honest, of_honest)
    keep("int4-by-pp1", rounded, of_rounded)
    blamed = [answer for answer, said in zip(honest, of_honest, strict=True) if not same(claim(answer), said)]
    assert len(honest) == 105
    assert not blamed
    missed = [answer for answer, said in zip(rounded, of_rounded, strict=True) if same(claim(answer), said)]
    # Greedy ones pass where rounding has changed none of the tokens that are looked at: then they are right. Sampled ones pass
    # where they say what the model knows by heart: one in seven here.
    sampled = [answer for answer in missed if not answer.is_likeliest]
    assert len(sampled) <= 10, f"{len(sampled)} of {len(rounded) * 2 // 3} sampled lies passed"
    assert len(missed) < len(rounded) * 2 // 3


def test_tensor_parallel_ranks_bear_a_pipeline_out(honest: list[pb.PickedAnswer]) -> None:
    with cluster([2], MODEL) as running:
        load(running, 2, (0, LAYERS))
        said = scored(running, honest)
    keep("pp2-by-tp2", honest, said)
    assert all(same(claim(answer), one) for answer, one in zip(honest, said, strict=True))
