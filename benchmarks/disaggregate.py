"""Prefill on one host and decode on another: `python -m benchmarks.disaggregate`, or `make bench BENCH=disaggregate`.

Two hosts in network namespaces, of unlike kinds: alice computes prompts fast and is 50 ms away from everybody, so that each
token of an answer takes that much longer; bob is near, and his matrix multiplications are held to the instructions of an older
CPU. One question about a document of some 1,500 tokens is asked of alice alone, of bob alone, and with `--disaggregate auto`,
each on clusters of its own; what the first two compute is not kept. Then a question is asked for which two clusters would not
pay.

Times are those in which the question is worked on, without the bring-up of clusters and without waiting for it: two clusters
come up at the same time, on two cores. Prints a table, writes `benchmarks/out/disaggregate.json`, and exits with 1 when a bar
is missed. Needs root.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Figure
from tests.system.lan import Lan
from tests.system.swarm import ASK_TIMEOUT_S, Swarm

OUT = Path(__file__).parent / "out" / "disaggregate.json"
REPOSITORY = Path(__file__).parents[1]
ONE_WAY_S = 0.025
OLDER_CPU = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
"""Without bfloat16 instructions: 3.5 to 4.5 times slower at matrix multiplications, and no slower at reading memory."""
DOCUMENT_CHARACTERS = 4300
"""About 1,500 tokens of the small model's vocabulary, which the made model has."""
ANSWER_TOKENS = 200
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What `ask --json` said of one question."""

    worked_s: float
    """From the question to the end of the answer, without waiting for a cluster."""
    prefill_tok_s: float
    cached_tokens: int
    bring_up_s: float
    spans: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """One document."""

    alice: Answer
    bob: Answer
    auto: Answer

    @property
    def sooner(self) -> float:
        return min(self.alice.worked_s, self.bob.worked_s) / self.auto.worked_s


def worked_s(said: dict[str, Any], tokens: int) -> float:
    """The time that an answer of so many tokens is worked on, at the measured rates: random weights end some earlier."""
    first_s = said["ttft_s"]
    if said["timeline"]:
        working = ("prefill", "KV blocks kept", "way measured", "first token")
        first_s = sum(span["end_s"] - span["begin_s"] for span in said["timeline"] if span["what"] in working)
    return float(first_s + (tokens - 1) / said["decode_tok_s"])


@dataclass
class Stage:
    swarm: Swarm
    model: str
    documents: Iterator[str]

    def turn(self) -> Turn:
        """All three about the first of the next documents to which no answer is a short one."""
        alone = ("--no-kv-share", "--peers")
        while True:
            document = next(self.documents)
            alice = self.ask(document, *alone, "alice")
            bob = self.ask(document, *alone, "bob") if alice is not None else None
            auto = self.ask(document, "--disaggregate", "auto") if bob is not None else None
            if alice is not None and bob is not None and auto is not None:
                return Turn(alice, bob, auto)

    def ask(self, document: str, *options: str, tokens: int = ANSWER_TOKENS) -> Answer | None:
        """None where the answer has not even a quarter of so many tokens."""
        words = ("--raw", "--json", "--pp", "1", "--max-tokens", str(tokens), *options)
        argv = self.swarm.ask(document, *words, model=self.model)
        done = self.swarm.requester.run(argv, timeout_s=ASK_TIMEOUT_S).check()
        said = json.loads(done.stdout)
        if len(said["token_ids"]) < tokens // 4:
            return None
        for line in done.stderr.splitlines():
            if " plan " in line or "failed" in line:
                print(line, flush=True)
        return Answer(
            worked_s(said, tokens) if tokens > 2 else said["ttft_s"],
            said["prompt_tokens"] / said["ttft_s"],
            said["cached_prompt_tokens"],
            said["bring_up_s"],
            tuple(said["timeline"]),
        )


def documents() -> Iterator[str]:
    """One after the other, nothing of one in another."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    for start in range(0, len(text) - DOCUMENT_CHARACTERS, DOCUMENT_CHARACTERS):
        yield text[start : start + DOCUMENT_CHARACTERS]


def measured(stage: Stage) -> list[Figure]:
    """A first question tells how fast prompts are really computed, as it would a user; then all in turn."""
    stage.ask(next(stage.documents), "--peers", "bob", "--kv-share", tokens=2)
    turns = []
    for _ in range(REPEATS):
        turns.append(turn := stage.turn())
        for name, answer in (("alice", turn.alice), ("bob", turn.bob), ("auto", turn.auto)):
            print(f"{name}: {answer.worked_s:.2f} s", *map(_line, answer.spans), sep="\n", flush=True)
    if not all(turn.auto.spans and turn.auto.cached_tokens for turn in turns):
        raise RuntimeError("auto asked one cluster, or nothing came from the other one")
    declined = stage.ask(next(stage.documents), "--disaggregate", "auto", tokens=2)
    assert declined is not None  # two tokens are never too few

    def median(of: Callable[[Turn], float]) -> float:
        return statistics.median(of(turn) for turn in turns)

    return [
        Figure(
            "prefill speed, alice against bob",
            median(lambda turn: turn.alice.prefill_tok_s / turn.bob.prefill_tok_s),
            "times",
        ),
        Figure("alice alone", median(lambda turn: turn.alice.worked_s), "s"),
        Figure("bob alone", median(lambda turn: turn.bob.worked_s), "s"),
        Figure("auto: prefill on alice, decode on bob", median(lambda turn: turn.auto.worked_s), "s"),
        Figure("sooner than the better of the two alone", median(lambda turn: turn.sooner), "times", 1.3),
        Figure("clusters for an answer of two tokens", 2.0 if declined.spans else 1.0, "", 1, "at most"),
        Figure("bring-up, alice alone", median(lambda turn: turn.alice.bring_up_s), "s"),
        Figure("bring-up, auto", median(lambda turn: turn.auto.bring_up_s), "s"),
    ]


def _line(span: dict[str, Any]) -> str:
    hosts = "+".join(span["hosts"])
    return f"  {span['begin_s']:6.2f} to {span['end_s']:6.2f} s  {span['what']} ({hosts}) {span['detail']}"


def main() -> int:
    """Exit status: 0 when every bar holds."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    commit = report.current_commit(REPOSITORY)
    with tempfile.TemporaryDirectory(prefix="edgellm-bench-", dir="/var/tmp") as directory, Lan() as lan:
        model = Path(directory) / "model"
        program = [sys.executable, "-m", "benchmarks.large_model", str(model), "--grouped"]
        subprocess.run(program, check=True, cwd=REPOSITORY)
        swarm = Swarm(lan)
        alice, bob = swarm.machine("alice"), swarm.machine("bob")
        lan.delay(alice, ONE_WAY_S)
        bob.environment |= OLDER_CPU
        # One after the other: each measures its machine first.
        swarm.start_host(alice, model=model, memory="3GiB").wait_ready()
        swarm.start_host(bob, model=model, memory="3GiB").wait_ready()
        figures = measured(Stage(swarm, model.name, documents()))
        lan.end_all()
    print(report.table(figures))
    report.write(OUT, report.document(figures, report.this_machine(), commit))
    return 1 if any(figure.holds is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
