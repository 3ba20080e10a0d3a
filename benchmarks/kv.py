"""KV blocks against computing: `python -m benchmarks.kv [PART...]`, or `make bench BENCH=kv`.

Two hosts in network namespaces. The first has answered about a document of 2,000 tokens and keeps its KV blocks; then the
second is asked, by the same requester:

sharing  about that document, in a session that shares its KV cache, with the gate that decides between fetching and computing
eager    about another such document, in a session whose gate takes computing for so slow that it always fetches
alone    about a third one that nobody has seen, in a session that shares nothing

Prints a table, writes `benchmarks/out/kv.json`, and exits with 1 when a bar is missed. Needs root.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pydoc_data.topics
import random
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from edgellm_vllm.kv.settings import CHUNK_TOKENS

from benchmarks import report
from benchmarks.report import Figure
from edgellm.sessions.client import ask_session
from edgellm.sessions.registry import Registry
from edgellm.wire import backend_pb2
from tests.system.lan import Lan
from tests.system.machine import Machine
from tests.system.swarm import ASK_TIMEOUT_S, Host, Swarm

OUT = Path(__file__).parent / "out" / "kv.json"
REPOSITORY = Path(__file__).parents[1]
PROMPT_TOKENS = 2000
CONTEXT = 2048
ANSWER_TOKENS = 2
DOCUMENT_PIECES = PROMPT_TOKENS // CHUNK_TOKENS
"""What is left of it after whole chunks is computed."""
REPEATS = 5
SHAPED_REPEATS = 5
RATES_MBIT = (500, 100, 50, 10)
# Ordinary tokens of the small model's vocabulary, which the made model has.
_VOCABULARY = range(300, 1280)
_STORED_TIMEOUT_S = 60.0
# Of the predicted prefill speed: whatever has to be fetched, computing it would take longer.
_EAGER_RATIO = 1e-3


@dataclass(frozen=True, slots=True)
class Answer:
    first_token_s: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One document each, one after the other."""

    sharing: Answer
    eager: Answer
    alone: Answer


@dataclass
class Stage:
    """The swarm and the requester's open sessions: `keeper` on the first host, the others on the second."""

    swarm: Swarm
    first: Host
    documents: int = 0

    def turn(self) -> Turn:
        """The first host answers, keeps its blocks, and then the second is asked."""
        known = [self._new_document() for _ in range(2)]
        before = self._known_pieces()
        for document in known:
            self.ask("keeper", document)
        self._wait_until_known(before)
        return Turn(
            self.ask("sharing", known[0]),
            self.ask("eager", known[1]),
            self.ask("alone", self._new_document()),
        )

    def ask(self, session: str, document: Sequence[int]) -> Answer:
        """Time from the question to the first token of the answer."""
        request = backend_pb2.GenerateRequest(
            request_id=secrets.token_hex(8),
            tokens=backend_pb2.Tokens(ids=document),
            sampling=backend_pb2.SamplingParams(max_tokens=ANSWER_TOKENS, ignore_eos=True),
        )
        first_s, cached = 0.0, 0
        began = time.monotonic()
        for event in ask_session(registry(self.swarm.requester), session, request):
            first_s = first_s or time.monotonic() - began
            cached = event.cached_prompt_tokens
        return Answer(first_s, cached)

    def _new_document(self) -> list[int]:
        self.documents += 1
        return random.Random(self.documents).choices(_VOCABULARY, k=PROMPT_TOKENS)

    def _wait_until_known(self, before: int) -> None:
        """Storing goes on beside and after an answer; then the requester is told what it may find where."""
        deadline = time.monotonic() + _STORED_TIMEOUT_S
        while self._known_pieces() < before + 2 * DOCUMENT_PIECES:
            if time.monotonic() > deadline:
                raise RuntimeError("the first host did not store all blocks")
            time.sleep(0.5)

    def _known_pieces(self) -> int:
        stat = self.swarm.requester.run(["edgellm", "kv", "stat", "--json"]).check().stdout
        return int(json.loads(stat)["known_records"])


def registry(requester: Machine) -> Registry:
    """The requester's sessions, seen from outside."""
    return Registry(
        requester.runtime / f"edgellm-{os.getuid()}" / "s", requester.home / ".local/state/edgellm/sessions"
    )


def unshaped(stage: Stage) -> list[Figure]:
    """Over the bare switch."""
    stage.turn()  # everything is cold
    turns = [stage.turn() for _ in range(REPEATS)]
    _note("unshaped", turns)
    if not all(turn.sharing.cached_tokens and turn.eager.cached_tokens for turn in turns):
        raise RuntimeError("some blocks were not fetched")
    sooner = statistics.median(turn.alone.first_token_s / turn.sharing.first_token_s for turn in turns)
    return [
        Figure("first token, with blocks from another host", _median(turns, lambda turn: turn.sharing), "s"),
        Figure("first token, computed", _median(turns, lambda turn: turn.alone), "s"),
        Figure("first token, sooner with blocks", sooner, "times", 8),
    ]


def shaped(stage: Stage) -> list[Figure]:
    """The first host's line limited (tc tbf)."""
    figures = []
    fetching: dict[int, float] = {}
    for rate in RATES_MBIT:
        stage.swarm.lan.limit(stage.first.machine, rate)
        stage.turn()  # what was measured of the way before does not hold any more
        turns = [stage.turn() for _ in range(SHAPED_REPEATS)]
        _note(f"{rate} Mbit/s", turns)
        gated = statistics.median(turn.sharing.first_token_s / turn.alone.first_token_s for turn in turns)
        fetching[rate] = statistics.median(
            turn.eager.first_token_s / turn.alone.first_token_s for turn in turns
        )
        figures += [
            Figure(f"{rate} Mbit/s: first token, gated, of computed", gated, "", 1.05, "at most"),
            Figure(f"{rate} Mbit/s: first token, fetched, of computed", fetching[rate], ""),
        ]
    if (rate := crossover(fetching)) is not None:
        figures.append(Figure("fetching and computing take equally long at", rate, "Mbit/s"))
    return figures


def crossover(fetching: dict[int, float]) -> float | None:
    """The rate at which fetching takes as long as computing, between two that were measured; logarithms are interpolated."""
    points = sorted(fetching.items())
    for (low, slow), (high, fast) in pairwise(points):
        if fast <= 1 < slow:
            share = math.log(slow) / math.log(slow / fast)
            return float(low * (high / low) ** share)
    return None


PARTS: dict[str, Callable[[Stage], list[Figure]]] = {"unshaped": unshaped, "shaped": shaped}


@contextmanager
def opened(swarm: Swarm, model: Path) -> Iterator[Stage]:
    """Hosts and sessions, closed at the end."""
    carol = swarm.requester
    first = swarm.start_host(swarm.machine("alice"), model=model, memory="3GiB").wait_ready()
    swarm.start_host(swarm.machine("bob"), "--max-leases", "3", model=model, memory="8GiB").wait_ready()
    text = "\n".join(pydoc_data.topics.topics.values())[: 2 * PROMPT_TOKENS]
    # A first question, as a user would have asked one: it tells how fast prompts are really computed.
    options = ("--raw", "--kv-share", "--max-tokens", "2", "--pp", "1", "--peers", "bob")
    carol.run(
        swarm.ask(text, *options, "--context", str(CONTEXT), model=model.name), timeout_s=ASK_TIMEOUT_S
    ).check()
    memory = carol.home / ".cache/edgellm/kv/prefill.json"
    learned = memory.read_bytes()
    stage = Stage(swarm, first)
    with ExitStack() as stack:

        def open_session(name: str, host: str, *options: str) -> None:
            shape = ("--model", model.name, "--pp", "1", "--peers", host, "--context", str(CONTEXT))
            argv = swarm.command("session open", "--name", name, "--idle", "0", *shape, *options)
            carol.run(argv, timeout_s=ASK_TIMEOUT_S).check()
            stack.callback(lambda: carol.run(["edgellm", "session", "close", name]).check())

        open_session("keeper", "alice", "--kv-share")
        open_session("sharing", "bob", "--kv-share")
        open_session("alone", "bob")
        memory.write_text(json.dumps(dict.fromkeys(json.loads(learned), _EAGER_RATIO)))
        open_session("eager", "bob", "--kv-share")
        memory.write_bytes(learned)
        yield stage


def main() -> int:
    """Exit status: 0 when every bar holds."""
    parser = argparse.ArgumentParser(prog="benchmarks.kv", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    commit = report.current_commit(REPOSITORY)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="edgellm-bench-", dir="/var/tmp") as directory, Lan() as lan:
        model = Path(directory) / "model"
        program = [sys.executable, "-m", "benchmarks.large_model", str(model), "--grouped"]
        subprocess.run(program, check=True, cwd=REPOSITORY)
        with opened(Swarm(lan), model) as stage:
            for name in options.parts or PARTS:
                figures += PARTS[name](stage)
        lan.end_all()
    print(report.table(figures))
    report.write(OUT, report.document(figures, report.this_machine(), commit))
    return 1 if any(figure.holds is False for figure in figures) else 0


def _median(turns: Sequence[Turn], side: Callable[[Turn], Answer]) -> float:
    return statistics.median(side(turn).first_token_s for turn in turns)


def _note(what: str, turns: Sequence[Turn]) -> None:
    for name in ("sharing", "eager", "alone"):
        answers: list[Answer] = [getattr(turn, name) for turn in turns]
        each = " ".join(f"{answer.first_token_s:.2f} ({answer.cached_tokens})" for answer in answers)
        print(f"{what}, {name}: s to first token (tokens not computed): {each}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
