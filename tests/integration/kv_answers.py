"""Clusters that share KV pieces, asked; and what their answers are compared by."""

from __future__ import annotations

import os
import secrets
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from edgellm.wire import backend_pb2 as pb
from tests.integration.vllm_cluster import HEAD, MODEL_PATH, Cluster, stages, wait_for_event


@dataclass(frozen=True)
class Answer:
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    cached_tokens: int
    seconds: float

    def says(self, other: Answer) -> bool:
        """Bit by bit."""
        return (self.tokens, self.logprobs) == (other.tokens, other.logprobs)


@dataclass(frozen=True)
class Written:
    """What the first cluster said to one prompt: computed, and from its own prefix cache."""

    computed: Answer
    from_cache: Answer


def ask(running: Cluster, ids: list[int], answer_tokens: int = 16) -> Answer:
    sampling = pb.SamplingParams(max_tokens=answer_tokens, ignore_eos=True, logprobs=True)
    request = pb.GenerateRequest(
        request_id=secrets.token_hex(8), tokens=pb.Tokens(ids=ids), sampling=sampling
    )
    begun = time.monotonic()
    events = list(running.stub.Generate(request, timeout=90))
    return Answer(
        tuple(token for event in events for token in event.token_ids),
        tuple(value for event in events for value in event.logprobs),
        events[0].cached_prompt_tokens,
        time.monotonic() - begun,
    )


def load(running: Cluster, tensor_parallel: int, *layers: tuple[int, int]) -> list[pb.LoadEvent]:
    wait_for_event(running, 0, "serving", 120)
    for worker in range(1, len(running.members)):
        wait_for_event(running, worker, "joined", 120)
    request = pb.LoadRequest(
        model_path=MODEL_PATH,
        head_address=HEAD,
        tensor_parallel=tensor_parallel,
        stages=stages(*layers),
        max_model_len=1024,
        kv_cache_bytes=128 << 20,
        max_num_seqs=16,
        share_kv=True,
    )
    return list(running.stub.Load(request, timeout=200))


def write(running: Cluster, ids: list[int]) -> Written:
    """Asks a cluster that has never seen the prompt, twice."""
    return Written(ask(running, ids), ask(running, ids))


def nearly_says(answer: Answer, reference: Answer) -> None:
    """Sums of two ranks differ from one rank's in their last bits; a wrong KV cache differs by 1 and more."""
    assert answer.tokens[0] == reference.tokens[0]
    assert abs(answer.logprobs[0] - reference.logprobs[0]) < 0.1


def kill_server(running: Cluster, worker: int) -> None:
    """Ends a worker's LMCache server without a warning."""
    for pid in descendants(running.members[worker].pid):
        if "lmcache.v1.multiprocess.server" in command_line(pid):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
