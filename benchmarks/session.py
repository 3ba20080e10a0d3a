"""Tokens per second of a session, and of the same cluster started by hand over plain Ethernet."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.by_hand import Shape, Token, cluster_by_hand
from edgellm.engine.question import question_to_wire
from edgellm.sessions.client import ask_session, session_state
from edgellm.sessions.registry import Registry
from edgellm.types.request import Question, Sampling
from edgellm.wire.session_pb2 import Description
from tests.system.machine import Machine
from tests.system.swarm import ASK_TIMEOUT_S, TINY, Swarm

PROMPT = "The with statement is used"
SEQUENCES = 4
NAME = "bench"


@dataclass(frozen=True, slots=True)
class Load:
    """A model that the hosts lend under its directory's name, and how long each answer is to be."""

    model: Path
    context: int
    tokens: int


SMALL = Load(TINY, context=2048, tokens=256)

Answer = tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class SessionSpeed:
    """Decode speed with so many requests at once: what each turn gave on either side."""

    session_each: tuple[float, ...]
    by_hand_each: tuple[float, ...]

    @property
    def session_tok_s(self) -> float:
        return statistics.median(self.session_each)

    @property
    def by_hand_tok_s(self) -> float:
        return statistics.median(self.by_hand_each)

    @property
    def ratio(self) -> float:
        """The median of the turns' ratios: what else the machine does then hits both sides of each alike."""
        pairs = zip(self.session_each, self.by_hand_each, strict=True)
        return statistics.median(session / by_hand for session, by_hand in pairs)


def measure_session(
    swarm: Swarm, workers: tuple[Machine, Machine], load: Load, at_once: Sequence[int], repeats: int
) -> dict[int, SessionSpeed]:
    """Speeds for each number of requests in `at_once`.

    Both clusters are up all the time and are asked in turns; while one answers the other's ranks are stopped. Both stream to
    this process, which takes the times, over a Unix socket. Raises RuntimeError when a single request does not get the same
    tokens from both.
    """
    with opened_session(swarm, load) as (registry, description):
        layers = tuple(stage.end_layer - stage.first_layer for stage in description.stages)
        names = [stage.name for stage in description.stages]
        ordered = sorted(workers, key=lambda machine: names.index(machine.name))
        shape = Shape(load.model, layers, load.context, SEQUENCES)
        of_session = ranks()
        with cluster_by_hand(swarm.requester, ordered, shape) as cluster:
            of_hand = ranks() - of_session
            if len(of_session) != len(layers) or len(of_hand) != len(layers):
                raise RuntimeError(f"{len(of_session)} ranks in the session, {len(of_hand)} by hand")
            session = Side(lambda: _ask(registry, load.tokens), of_session)
            by_hand = Side(lambda: cluster.ask(PROMPT, load.tokens), of_hand)
            if _ids(session.ask()) != _ids(by_hand.ask()):
                raise RuntimeError("the session and the cluster by hand give different tokens")
            return {count: _in_turns(session, by_hand, count, repeats) for count in at_once}


@dataclass(frozen=True, slots=True)
class Side:
    """A cluster to be asked, and its ranks' processes."""

    ask: Callable[[], Answer]
    ranks: frozenset[psutil.Process]

    def asleep(self) -> AbstractContextManager[None]:
        return asleep(self.ranks)


@contextmanager
def asleep(ranks: frozenset[psutil.Process]) -> Iterator[None]:
    """Stops ranks, which wake often also when nothing is asked (gloo's threads) and would slow down the other side."""
    for rank in ranks:
        rank.suspend()
    try:
        yield
    finally:
        for rank in ranks:
            rank.resume()


def ranks() -> frozenset[psutil.Process]:
    """The processes of all ranks on this machine, whoever started them."""
    return frozenset(
        process
        for process in psutil.process_iter(["cmdline"])
        if any("RayWorkerProc" in word for word in process.info["cmdline"] or ())
    )


def _in_turns(session: Side, by_hand: Side, at_once: int, repeats: int) -> SessionSpeed:
    speeds: list[tuple[float, float]] = []
    with ThreadPoolExecutor(at_once) as threads:

        def measure(side: Side, other: Side) -> float:
            with other.asleep():
                asked = [threads.submit(side.ask) for _ in range(at_once)]
                return decode_tok_s([answer.result() for answer in asked])

        for turn in range(repeats + 1):
            # Who goes first changes, so that neither always follows the other.
            if turn % 2:
                speeds.append((measure(session, by_hand), measure(by_hand, session)))
            else:
                speeds.append((measure(by_hand, session), measure(session, by_hand))[::-1])
    # The first turn finds everything cold.
    return SessionSpeed(*zip(*speeds[1:], strict=True))


def decode_tok_s(answers: Sequence[Answer]) -> float:
    """Tokens per second of all answers together, while all of them were being made: from the last first token on."""
    begin = max(answer[0].at_s for answer in answers)
    end = min(answer[-1].at_s for answer in answers)
    return sum(begin < token.at_s <= end for answer in answers for token in answer) / (end - begin)


def _ids(answer: Answer) -> list[int]:
    return [token.id for token in answer]


@contextmanager
def opened_session(
    swarm: Swarm, load: Load, sequences: int = SEQUENCES
) -> Iterator[tuple[Registry, Description]]:
    """A session of the requester over two hosts, closed at the end."""
    carol = swarm.requester
    options = ("--model", load.model.name, "--name", NAME, "--pp", "2", "--context", str(load.context))
    argv = swarm.command("session open", *options, "--sequences", str(sequences))
    carol.run(argv, timeout_s=ASK_TIMEOUT_S).check()
    try:
        # Its files are where the requester's user has them, seen from outside.
        registry = Registry(
            carol.runtime / f"edgellm-{os.getuid()}" / "s", carol.home / ".local/state/edgellm/sessions"
        )
        description = session_state(registry, NAME).description
        if description is None:
            raise RuntimeError("the session does not answer")
        yield registry, description
    finally:
        carol.run(["edgellm", "session", "close", NAME]).check()


def _ask(registry: Registry, tokens_wanted: int) -> Answer:
    question = Question(text=PROMPT, sampling=Sampling(max_tokens=tokens_wanted, temperature=0.0))
    request = question_to_wire(question, secrets.token_hex(8))
    request.sampling.ignore_eos = True
    tokens: list[Token] = []
    for event in ask_session(registry, NAME, request):
        now = time.monotonic()
        tokens += [Token(now, token) for token in event.token_ids]
    return tuple(tokens)
