"""Tokens per second of a session, and of the same cluster started by hand over plain Ethernet."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.by_hand import Shape, Token, cluster_by_hand
from edgellm.engine.question import question_to_wire
from edgellm.sessions.client import ask_session, session_state
from edgellm.sessions.registry import Registry
from edgellm.types.request import Question, Sampling
from edgellm.wire.session_pb2 import Description
from tests.system.machine import Machine
from tests.system.swarm import ASK_TIMEOUT_S, TINY, Swarm

PROMPT = "The with statement is used"
TOKENS = 256
CONTEXT = 2048
SEQUENCES = 4
_NAME = "bench"


@dataclass(frozen=True, slots=True)
class SessionSpeed:
    """Decode speed of one request at a time: medians over `repeats` answers, and each of them."""

    session_tok_s: float
    by_hand_tok_s: float
    session_each: tuple[float, ...]
    by_hand_each: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return self.session_tok_s / self.by_hand_tok_s


def measure_session(swarm: Swarm, workers: tuple[Machine, Machine], repeats: int) -> SessionSpeed:
    """Both clusters are up at once, and are asked in turns: while one answers the other is idle.

    Raises RuntimeError when they do not give the same tokens.
    """
    with opened_session(swarm) as (registry, description):
        layers = tuple(stage.end_layer - stage.first_layer for stage in description.stages)
        names = [stage.name for stage in description.stages]
        ordered = sorted(workers, key=lambda machine: names.index(machine.name))
        shape = Shape(TINY, layers, CONTEXT, SEQUENCES)
        with cluster_by_hand(swarm.requester, ordered, shape) as by_hand:
            session_each, by_hand_each = [], []
            # The first answers find everything cold and do not count.
            for turn in range(repeats + 1):
                ours = _ask(registry)
                theirs = by_hand.ask(PROMPT, TOKENS)
                if [token.id for token in ours] != [token.id for token in theirs]:
                    raise RuntimeError("the session and the cluster by hand give different tokens")
                if turn:
                    session_each.append(decode_tok_s(ours))
                    by_hand_each.append(decode_tok_s(theirs))
    return SessionSpeed(
        session_tok_s=statistics.median(session_each),
        by_hand_tok_s=statistics.median(by_hand_each),
        session_each=tuple(session_each),
        by_hand_each=tuple(by_hand_each),
    )


def decode_tok_s(tokens: tuple[Token, ...]) -> float:
    """Tokens after those that came first, per second after them."""
    first, last = tokens[0].at_s, tokens[-1].at_s
    return sum(token.at_s > first for token in tokens) / (last - first)


@contextmanager
def opened_session(swarm: Swarm) -> Iterator[tuple[Registry, Description]]:
    """A session of the requester over two hosts, closed at the end."""
    carol = swarm.requester
    options = ("--model", "tiny", "--name", _NAME, "--pp", "2", "--context", str(CONTEXT))
    argv = swarm.command("session open", *options, "--sequences", str(SEQUENCES))
    carol.run(argv, timeout_s=ASK_TIMEOUT_S).check()
    try:
        # Its files are where the requester's user has them, seen from outside.
        registry = Registry(carol.runtime / f"edgellm-{os.getuid()}" / "s")
        description = session_state(registry, _NAME).description
        if description is None:
            raise RuntimeError("the session does not answer")
        yield registry, description
    finally:
        carol.run(["edgellm", "session", "close", _NAME]).check()


def _ask(registry: Registry) -> tuple[Token, ...]:
    question = Question(text=PROMPT, sampling=Sampling(max_tokens=TOKENS, temperature=0.0))
    request = question_to_wire(question, secrets.token_hex(8))
    request.sampling.ignore_eos = True
    tokens: list[Token] = []
    for event in ask_session(registry, _NAME, request):
        now = time.monotonic()
        tokens += [Token(now, token) for token in event.token_ids]
    return tuple(tokens)
