"""When a rank counts as one that does something."""

from __future__ import annotations

import pytest
from edgellm_vllm import stage_clock
from edgellm_vllm.stage_clock import HEARD_S, StageClock


def test_a_rank_works_while_it_computes_and_while_a_long_input_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(stage_clock.time, "perf_counter", lambda: now[0])
    clock = StageClock()
    assert not clock.works
    clock.begin()
    assert clock.works
    clock.waits()
    assert not clock.works, "nothing has come yet"
    for _ in range(10):
        clock.heard()
        now[0] += HEARD_S - 0.1
        assert clock.works
    now[0] += 0.2
    assert not clock.works, "the rest does not come"
    clock.heard()
    clock.received(())
    clock.end()
    assert not clock.works
