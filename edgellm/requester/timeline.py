"""What happened when, of one question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio


@dataclass(frozen=True, slots=True)
class Span:
    """One step, in seconds since its hosts were chosen."""

    what: str
    who: tuple[str, ...]
    """Names of hosts."""
    begin_s: float
    end_s: float
    detail: str = ""

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s


class Timeline:
    """Of a question whose hosts have just been chosen."""

    def __init__(self) -> None:
        self._began = trio.current_time()
        self._steps: list[Step] = []

    @property
    def now_s(self) -> float:
        return trio.current_time() - self._began

    @property
    def spans(self) -> tuple[Span, ...]:
        """Of the steps that ended, in the order of their beginnings."""
        ended = [step.span for step in self._steps if step.span is not None]
        return tuple(sorted(ended, key=lambda span: (span.begin_s, span.end_s)))

    def begin(self, what: str, who: Sequence[str]) -> Step:
        """A step that begins now."""
        step = Step(self, what, tuple(who))
        self._steps.append(step)
        return step


class Step:
    """Made by `Timeline.begin`."""

    def __init__(self, timeline: Timeline, what: str, who: tuple[str, ...]) -> None:
        self._timeline = timeline
        self._what, self.who = what, who
        self.begin_s = timeline.now_s
        self.span: Span | None = None
        """None until it has ended."""

    def end(self, *details: str) -> None:
        self.span = Span(self._what, self.who, self.begin_s, self._timeline.now_s, ", ".join(details))
