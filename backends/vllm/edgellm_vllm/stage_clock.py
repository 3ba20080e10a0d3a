"""How long each pipeline stage computes in a step, handed on from stage to stage with the tensors.

A stage's time runs from where it has its input to where it hands on its output; what is left of a step is scheduling and the
way between stages. Where tensors go by another way than `stage_messages` (CUDA), only the last stage is known.
"""

from __future__ import annotations

import time
from typing import Any

HEARD_S = 3.0
"""A message of which nothing more comes for so long does not come."""


class StageClock:
    """Of one rank, which runs one step at a time."""

    def __init__(self) -> None:
        self._before: tuple[float, ...] = ()
        self._began = time.perf_counter()
        self._heard = float("-inf")
        self._computes = False

    @property
    def works(self) -> bool:
        """Whether it is computing, or a long input is on its way to it; not while it only waits or has nothing to do."""
        return self._computes or time.perf_counter() - self._heard < HEARD_S

    def begin(self) -> None:
        """A step has come."""
        self.received(())

    def goes_on(self) -> None:
        """With a step that has come in parts."""
        self._computes = True

    def end(self) -> None:
        """It is done."""
        self._computes = False

    def waits(self) -> None:
        """For the input."""
        self._computes = False

    def heard(self) -> None:
        """A piece of the input has come, and not all of it: the links of volunteers are slow, and prompts are long."""
        self._heard = time.perf_counter()

    def received(self, before_s: tuple[float, ...]) -> None:
        """The input is there, for which earlier stages computed `before_s`."""
        self._before, self._began, self._computes = before_s, time.perf_counter(), True
        self._heard = float("-inf")

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
