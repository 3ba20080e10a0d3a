"""From Enter to an open session's engine: `python -m benchmarks.cold_ask`, or `make bench BENCH=cold_ask`.

A session over two hosts is asked again and again, each time by a new `edgellm ask`, as a shell starts it: from the start of
the process until its first token is read from standard output. The same question is put to the same engine by a program that
runs already, over a channel that is open already: from its call to its first token. The difference of the medians is what the
command takes until its request is in the engine, Python's start and the way of the token through standard output included. All
kinds take turns, so that what else the machine does hits all of them.

Prints a table, writes `benchmarks/out/cold_ask.json`, and exits with 1 when a bar is missed. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from benchmarks import report
from benchmarks.report import Figure
from benchmarks.session import SMALL, opened_session
from edgellm.engine.question import question_to_wire
from edgellm.sessions.registry import Registry
from edgellm.types.request import Message, Question, Sampling
from edgellm.wire import backend_pb2_grpc, session_pb2, session_pb2_grpc
from tests.system.lan import Lan
from tests.system.machine import Machine
from tests.system.swarm import Swarm

OUT = Path(__file__).parent / "out" / "cold_ask.json"
REPOSITORY = Path(__file__).parents[1]
REPEATS = 20
BAR_S = 0.6
PROMPT = "What is a list?"
TOKENS = 4
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Cold:
    """One `edgellm ask`."""

    first_token_s: float
    cpu_s: float
    """Of its process, until its end."""


def measured(swarm: Swarm) -> list[Figure]:
    """Of a session that is opened for this."""
    with (
        opened_session(swarm, SMALL) as (registry, description),
        warm_engine(registry, description.name) as warm,
    ):
        named = ("--session", description.name)
        by_model = ("--model", description.model)
        turns = []
        for _ in range(REPEATS + 1):
            turns.append((cold(swarm.requester, named), cold(swarm.requester, by_model), first_token_s(warm)))
    # The first turn reads the programs from the disk.
    to_session, to_model, to_engine = zip(*turns[1:], strict=True)
    print("first token of ask --session, s: " + " ".join(f"{one.first_token_s:.2f}" for one in to_session))
    print("first token of the engine, s: " + " ".join(f"{one:.3f}" for one in to_engine), flush=True)
    whole_s = statistics.median(one.first_token_s for one in to_session)
    engine_s = statistics.median(to_engine)
    model_s = statistics.median(one.first_token_s for one in to_model)
    return [
        Figure("ask --session, request in the engine", whole_s - engine_s, "s", BAR_S, "at most"),
        Figure("ask --session, first token", whole_s, "s"),
        Figure("ask --session, first token, slowest", max(one.first_token_s for one in to_session), "s"),
        Figure("ask --session, CPU time", statistics.median(one.cpu_s for one in to_session), "s"),
        Figure(
            "ask --model with an idle session, request in the engine",
            model_s - engine_s,
            "s",
            BAR_S,
            "at most",
        ),
        Figure("the engine alone, first token", engine_s, "s"),
    ]


def cold(machine: Machine, to: tuple[str, str]) -> Cold:
    """Asks by a new process of the machine's user. Raises RuntimeError when it fails."""
    words = ("ask", PROMPT, *to, "--max-tokens", str(TOKENS), "--temperature", "0", "--quiet")
    # Sockets of Unix are found by their path from outside the machine, too: no time goes by on the way into it.
    program = str(Path(sys.prefix) / "bin" / "edgellm")
    began = time.monotonic()
    process = subprocess.Popen(
        [program, *words], stdout=subprocess.PIPE, env=machine.environment, cwd=machine.home
    )
    assert process.stdout is not None
    with process.stdout as pipe:
        first = os.read(pipe.fileno(), 1)
        at = time.monotonic()
        while os.read(pipe.fileno(), 65536):
            pass
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not first:
        raise RuntimeError(f"edgellm ask ended with {process.returncode}")
    return Cold(at - began, usage.ru_utime + usage.ru_stime)


@contextlib.contextmanager
def warm_engine(registry: Registry, name: str) -> Iterator[backend_pb2_grpc.BackendStub]:
    """The session's engine over an open channel, for as long as the session is in use."""
    with grpc.insecure_channel(f"unix:{registry.files(name).socket}") as channel:
        stub = session_pb2_grpc.SessionStub(channel)  # type: ignore[no-untyped-call] # generated
        use = stub.Use(session_pb2.UseRequest())
        socket = next(use).socket
        use.cancel()
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        yield backend_pb2_grpc.BackendStub(channel)  # type: ignore[no-untyped-call] # generated


def first_token_s(engine: backend_pb2_grpc.BackendStub) -> float:
    """Of the question that the commands ask."""
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0)
    question = Question(messages=(Message("user", PROMPT),), sampling=sampling)
    request = question_to_wire(question, secrets.token_hex(8))
    began = time.monotonic()
    at = None
    for event in engine.Generate(request, timeout=_TIMEOUT_S):
        if event.token_ids and at is None:
            at = time.monotonic()
    if at is None:
        raise RuntimeError("the engine made no token")
    return at - began


def main() -> int:
    """Exit status: 0 when every bar holds."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    commit = report.current_commit(REPOSITORY)
    with Lan() as lan:
        swarm = Swarm(lan)
        swarm.start_hosts("alice", "bob")
        figures = measured(swarm)
        lan.end_all()
    print(report.table(figures))
    report.write(OUT, report.document(figures, report.this_machine(), commit))
    return 1 if any(figure.holds is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
