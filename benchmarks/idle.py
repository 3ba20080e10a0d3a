"""What a host costs while nobody asks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from tests.system.process import Process

SETTLE_S = 10.0
WINDOW_S = 60.0
_SAMPLE_S = 2.0


@dataclass(frozen=True, slots=True)
class IdleCost:
    """Of one process and its descendants."""

    rss_bytes: int
    """The most that was seen."""
    cpu_share: float
    """Of one core, 0 to 1, over the whole window."""


def measure_idle(processes: Sequence[Process], window_s: float = WINDOW_S) -> tuple[IdleCost, ...]:
    """One cost for each process, all over the same window."""
    time.sleep(SETTLE_S)
    began = time.monotonic()
    before = [_cpu_s(process) for process in processes]
    most = [0] * len(processes)
    while time.monotonic() - began < window_s:
        most = [max(seen, _rss_bytes(process)) for seen, process in zip(most, processes, strict=True)]
        time.sleep(_SAMPLE_S)
    return tuple(
        IdleCost(rss_bytes, (_cpu_s(process) - cpu_s) / (time.monotonic() - began))
        for rss_bytes, process, cpu_s in zip(most, processes, before, strict=True)
    )


def _cpu_s(process: Process) -> float:
    # With that of children that have ended, so that nothing that runs shortly is lost.
    return sum(sum(entry.cpu_times()[:4]) for entry in _tree(process))


def _rss_bytes(process: Process) -> int:
    return sum(entry.memory_info().rss for entry in _tree(process))


def _tree(process: Process) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in process.tree()]
