"""How long each pipeline stage computes in a step, handed on from stage to stage with the tensors.

A stage's time runs from where it has its input to where it hands on its output; what is left of a step is scheduling and the
way between stages. Where tensors go by another way than `stage_messages` (CUDA), only the last stage is known.
"""

from __future__ import annotations

import time
from typing import Any


class StageClock:
    """Of one rank, which runs one step at a time."""

    def __init__(self) -> None:
        self._before: tuple[float, ...] = ()
        self._began = time.perf_counter()
        self.works = False
        """Whether it is computing, and neither waits for another rank nor has nothing to do."""

    def begin(self) -> None:
        """A step has come."""
        self.received(())

    def goes_on(self) -> None:
        """With a step that has come in parts."""
        self.works = True

    def end(self) -> None:
        """It is done."""
        self.works = False

    def waits(self) -> None:
        """For the input."""
        self.works = False

    def received(self, before_s: tuple[float, ...]) -> None:
        """The input is there, for which earlier stages computed `before_s`."""
        self._before, self._began, self.works = before_s, time.perf_counter(), True

    def spent_s(self) -> tuple[float, ...]:
        """Computing time of each stage up to this one, in pipeline order."""
        return (*self._before, time.perf_counter() - self._began)


CLOCK = StageClock()
"""This process's: a rank has a process of its own."""

_ATTRIBUTE = "edgellm_stage_s"


def stamp(output: Any, stage_s: tuple[float, ...]) -> None:
    """Notes on a step's result, which goes to the engine core by pickle, what each stage took."""
    # The empty result is one object for all steps.
    if getattr(output, "req_ids", None):
        setattr(output, _ATTRIBUTE, stage_s)


def stamped(output: Any) -> tuple[float, ...]:
    """What was noted; () where nothing was."""
    return getattr(output, _ATTRIBUTE, ())
