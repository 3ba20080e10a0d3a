"""Process groups of a rank on one gloo device, in two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RANK = """
import os, sys
import torch, torch.distributed as dist
from datetime import timedelta
if sys.argv[3] == "shared":
    from edgellm_vllm.gloo import share_one_device
    share_one_device()

def threads():
    return len(os.listdir("/proc/self/task"))

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2, timeout=timedelta(seconds=30))
before = threads()
groups = [dist.new_group([0, 1], backend="gloo", timeout=timedelta(seconds=20)) for _ in range(8)]
for number, group in enumerate(groups):
    value = torch.tensor([float(rank + number)])
    dist.all_reduce(value, group=group)
    assert value.item() == 1 + 2 * number, value
    gathered = [None, None]
    dist.all_gather_object(gathered, {"rank": rank}, group=group)
    assert gathered == [{"rank": 0}, {"rank": 1}]
backend = groups[0]._get_backend(torch.device("cpu"))
assert backend.options._timeout == timedelta(seconds=20), backend.options._timeout
print(threads() - before)
dist.barrier()
"""


def _threads_of_eight_groups(directory: Path, how: str) -> list[int]:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(directory / how), how],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        return [int(rank.communicate(timeout=60)[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def test_groups_work_on_one_device_and_each_saves_a_thread(tmp_path: Path) -> None:
    separate = _threads_of_eight_groups(tmp_path, "separate")
    shared = _threads_of_eight_groups(tmp_path, "shared")
    assert [a - b for a, b in zip(separate, shared, strict=True)] == [8, 8]
