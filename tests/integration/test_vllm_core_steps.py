"""vLLM's engine core between one token and the next."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: vLLM is imported, and its class changed.
CORE = """
import sys
from collections import deque
from unittest import mock
from vllm.v1.engine import core
if sys.argv[1] == "ours":
    from edgellm_vllm.steps import go_on_after_results
    go_on_after_results()
    go_on_after_results()

steps = []
class Core(core.EngineCoreProc):
    def __init__(self):
        # One request, whose step is under way: what comes next schedules nothing and waits for the result.
        self.batch_queue, self.batch_queue_size = deque(), 1
        self.scheduler = mock.MagicMock()
        self.scheduler.has_requests.return_value = True
        self.scheduler.schedule.return_value.total_num_scheduled_tokens = 0
        self.scheduler.update_from_output.side_effect = lambda *_: {0: "outputs"} if steps else {}
        self.model_executor = mock.MagicMock()
        self.is_mm_encoder_only = self.is_pooling_model = self.check_for_draft_tokens = False
        self.output_queue = mock.MagicMock()
        self._should_throttle_prefills = self._process_aborts_queue = mock.MagicMock()
        self.log_error_detail = self.capture_iteration_details = mock.MagicMock()
        self._attach_iteration_details = self._attach_weight_version = mock.MagicMock()
        self.step_fn = self.step_with_batch_queue

with mock.patch.object(core, "time") as time:
    # Nothing came out: vLLM's pause stays.
    it = Core(); it._process_engine_step()
    print(time.sleep.call_count)
    steps.append(1)
    it = Core(); it._process_engine_step()
    print(time.sleep.call_count)
"""


@pytest.mark.parametrize(("whose", "pauses"), [("vllm", [1, 2]), ("ours", [1, 1])])
def test_the_core_pauses_only_where_nothing_came(whose: str, pauses: list[int]) -> None:
    """With vLLM's own it pauses after a result, too: once it does not, `go_on_after_results` can go."""
    done = subprocess.run(
        [sys.executable, "-c", CORE, whose], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [int(line) for line in done.stdout.split()[-2:]] == pauses
