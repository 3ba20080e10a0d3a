"""From the command to the first token: `edgellm ask`, and Ray and vLLM started by hand."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.by_hand import Shape, cluster_by_hand
from benchmarks.session import PROMPT, SEQUENCES, SMALL
from tests.system.machine import Machine
from tests.system.swarm import ASK_TIMEOUT_S, Swarm

_TOKENS = 8
_LAYERS = (4, 4)
_PHASE = re.compile(r"^ *(\d+\.\d) s  (\S+) +(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class BringUp:
    """One bring-up; `phases`: when each was reached, in seconds since the command."""

    first_token_s: float
    phases: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FirstToken:
    """All bring-ups of both sides."""

    ask: tuple[BringUp, ...]
    by_hand: tuple[BringUp, ...]

    @property
    def ask_s(self) -> float:
        return statistics.median(bring_up.first_token_s for bring_up in self.ask)

    @property
    def by_hand_s(self) -> float:
        return statistics.median(bring_up.first_token_s for bring_up in self.by_hand)

    @property
    def ratio(self) -> float:
        return self.ask_s / self.by_hand_s


def measure_first_token(swarm: Swarm, workers: tuple[Machine, Machine], repeats: int) -> FirstToken:
    """`repeats` of each, in turns; each is gone before the next begins."""
    ask, by_hand = [], []
    for _ in range(repeats):
        ask.append(_ask(swarm))
        by_hand.append(_by_hand(swarm.requester, workers))
    return FirstToken(tuple(ask), tuple(by_hand))


def phase_table(bring_ups: Sequence[BringUp]) -> str:
    """The median second at which each phase that all bring-ups have was reached."""
    shared = [name for name in bring_ups[0].phases if all(name in other.phases for other in bring_ups)]
    times = {name: statistics.median(other.phases[name] for other in bring_ups) for name in shared}
    return "\n".join(
        f"  {times[name]:6.1f} s  {name}" for name in sorted(shared, key=lambda name: times[name])
    )


def _ask(swarm: Swarm) -> BringUp:
    argv = swarm.ask(PROMPT, "--raw", "--pp", "2", "--max-tokens", str(_TOKENS))
    began = time.monotonic()
    process = swarm.requester.start(argv)
    done = process.wait(ASK_TIMEOUT_S).check()
    first = next(at for at, stream, text in process.chunks if stream == "stdout" and text)
    phases = {f"{who} {what}".strip(): float(at) for at, who, what in reversed(_PHASE.findall(done.stderr))}
    return BringUp(first - began, phases)


def _by_hand(head: Machine, workers: Sequence[Machine]) -> BringUp:
    with cluster_by_hand(head, workers, Shape(SMALL.model, _LAYERS, SMALL.context, SEQUENCES)) as cluster:
        first = cluster.ask(PROMPT, _TOKENS)[0]
    return BringUp(first.at_s - cluster.began_s, cluster.phases)
