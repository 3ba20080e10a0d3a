"""Which member is lost or slow, from how steps go and what ranks answer meanwhile. Pure: instants come from the caller.

A step may take long for good reasons: a long prompt, a busy machine. A rank that is there answers all the same, from a thread
that does nothing else (`pulse`). So it is silence that counts, and only while a step does not end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

DEFAULT_STALL_S = 5.0
"""From a rank's falling silent in a step to the verdict, at most."""
_ASK_SHARE = 0.2
"""Of it: a step that takes so long has its ranks asked whether they are there."""

SLOW_FACTOR = 10.0
SLOW_FOR_S = 3.0
SLOW_AGAIN_S = 30.0
SLOW_LEAST_S = 0.03
"""A stage whose step takes less is not slow, whatever it took before."""
_SMALL_STEP_TOKENS = 64
_KNOWN_STEPS = 16
_WEIGHT = 0.05


@dataclass
class Steps:
    """Those that the ranks were sent and have not answered."""

    under_way: int = 0
    _since: float = 0.0

    def begun(self, now: float) -> None:
        if not self.under_way:
            self._since = now
        self.under_way += 1

    def done(self, now: float) -> None:
        self.under_way -= 1
        self._since = now

    def stuck_s(self, now: float) -> float:
        """How long none has ended while some should."""
        return now - self._since if self.under_way else 0.0


@dataclass(frozen=True)
class Verdict:
    """A rank that is lost; None: one of them, and it cannot be told which."""

    rank: int | None
    why: str


@dataclass
class Silence:
    """What ranks answer while a step does not end."""

    ranks: int
    stall_s: float = DEFAULT_STALL_S
    tells_work: bool = True
    """Whether a rank that says that it does nothing really does nothing (CUDA's devices work while it waits)."""
    _asked: dict[int, float] = field(default_factory=dict)
    _idle_since: dict[int, float] = field(default_factory=dict)

    def to_ask(self, stuck_s: float, now: float) -> list[int]:
        """The ranks to ask now. They count as asked."""
        if stuck_s < self.stall_s * _ASK_SHARE:
            self._idle_since.clear()
            return []
        due = [rank for rank in range(self.ranks) if rank not in self._asked]
        self._asked.update(dict.fromkeys(due, now))
        return due

    def answered(self, rank: int, works: bool, now: float) -> None:
        """`works`: it is computing, and neither waits for another nor has nothing to do."""
        self._asked.pop(rank, None)
        if works:
            self._idle_since.pop(rank, None)
        else:
            self._idle_since.setdefault(rank, now)

    def slept(self, now: float) -> None:
        """This process did not run for a while; what was answered meanwhile is still on its way."""
        self._asked = dict.fromkeys(self._asked, now)
        self._idle_since.clear()

    def verdict(self, stuck_s: float, now: float) -> Verdict | None:
        """None while nothing is wrong."""
        if stuck_s < self.stall_s / 2:
            return None
        silent = [rank for rank, asked in self._asked.items() if now - asked > self.stall_s / 2]
        if silent:
            rank = min(silent, key=self._asked.__getitem__)
            return Verdict(rank, f"a rank has not answered for {now - self._asked[rank]:.1f} s")
        if self.tells_work and len(self._idle_since) == self.ranks:
            idle_s = now - max(self._idle_since.values())
            if idle_s > self.stall_s:
                return Verdict(
                    None, f"no rank has anything to do for {idle_s:.1f} s, and a step does not end"
                )
        return None


@dataclass
class _Stage:
    normal_s: float = 0.0
    known: int = 0
    slow_since: float | None = None
    told: float = float("-inf")


class SlowStages:
    """Stages that have become far slower than they were, for several seconds."""

    def __init__(self) -> None:
        self._stages: dict[int, _Stage] = {}

    def note(self, tokens: int, stage_s: Sequence[float], now: float) -> Mapping[int, float]:
        """A step for so many tokens is done; stages to tell about, with how many times as long they take."""
        if tokens > _SMALL_STEP_TOKENS:
            return {}
        slow = {}
        for index, seconds in enumerate(stage_s):
            stage = self._stages.setdefault(index, _Stage())
            is_known = stage.known >= _KNOWN_STEPS
            if not is_known or seconds < max(SLOW_LEAST_S, SLOW_FACTOR * stage.normal_s):
                weight = _WEIGHT if is_known else 1 / (stage.known + 1)
                stage.normal_s += weight * (seconds - stage.normal_s)
                stage.known += 1
                stage.slow_since = None
                continue
            if stage.slow_since is None:
                stage.slow_since = now
            if now - stage.slow_since >= SLOW_FOR_S and now - stage.told >= SLOW_AGAIN_S:
                stage.told = now
                slow[index] = seconds / max(stage.normal_s, 1e-6)
        return slow
