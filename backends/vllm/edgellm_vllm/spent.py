"""What each request's steps cost each pipeline stage, added up in the engine core."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

MAX_REQUESTS = 4096
"""More are never under way; what comes over it is not counted."""


@dataclass(slots=True)
class Spent:
    """Seconds of computing in each stage, in pipeline order."""

    prefill_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    whole: bool = True
    """Whether every step told what it cost."""
    decodes: bool = False


class Ledger:
    """Requests share steps: what a step costs counts in full for each of them, for each waited that long."""

    def __init__(self) -> None:
        self._open: dict[str, Spent] = {}

    def begin(self, scheduled: Iterable[str]) -> None:
        """A step for these requests is sent."""
        for request in scheduled:
            if request not in self._open and len(self._open) < MAX_REQUESTS:
                self._open[request] = Spent()

    def step(
        self, scheduled: Iterable[str], stage_s: Sequence[float], sampled: Collection[str] | None = None
    ) -> None:
        """A step for these requests is done, of which those in `sampled` (None: all) have a token by it.

        Those that have finished meanwhile are left out.
        """
        for request in scheduled:
            spent = self._open.get(request)
            if spent is None:
                continue
            if not stage_s:
                spent.whole = False
            target = spent.decode_s if spent.decodes else spent.prefill_s
            for stage, seconds in enumerate(stage_s):
                if stage == len(target):
                    target.append(0.0)
                target[stage] += seconds
            spent.decodes = spent.decodes or sampled is None or request in sampled

    def finished(self, requests: Iterable[str]) -> list[tuple[str, Spent]]:
        """What these cost; they are forgotten. Those that were never in a step are left out."""
        return [(request, self._open.pop(request)) for request in requests if request in self._open]
