"""Tensors between two ranks, as pipeline stages send them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RANK = """
import sys
import torch, torch.distributed
from edgellm_vllm.stage_messages import StageMessages

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
messages = StageMessages(torch.distributed.group.WORLD, "127.0.0.1")
torch.manual_seed(0)
steps = [
    {"hidden_states": torch.randn(rows, width, dtype=dtype), "residual": torch.randn(rows, 3, dtype=torch.float32)}
    # Odd sizes, nothing at all, more than the kernel takes at once; then small again.
    for rows, width, dtype in [
        (1, 7, torch.bfloat16), (1, 8, torch.float16), (0, 8, torch.bfloat16), (64, 8192, torch.bfloat16),
        (3000, 2048, torch.float32), (1, 128, torch.bfloat16),
    ]
] * 3
if rank == 0:
    # A stranger and one that says nothing come first.
    import socket, time
    where = messages._peers[1][0]
    with socket.create_connection(where) as stranger:
        stranger.sendall(bytes(20))
    with socket.create_connection(where):
        pass
    for step in steps:
        sent = {name: tensor.clone() for name, tensor in step.items()}
        messages.send(sent, 1)
        for tensor in sent.values():
            tensor.zero_()
    try:
        messages.send({"number": 3}, 1)
    except TypeError as error:
        assert "number" in str(error)
    else:
        raise AssertionError("sent what is no tensor")
    torch.distributed.barrier()
else:
    for number, step in enumerate(steps):
        if number == 1:
            import time
            time.sleep(1)  # what is sent meanwhile has to wait, and the sender with it
        received = messages.receive(0)
        assert received.keys() == step.keys()
        for name, tensor in received.items():
            assert tensor.dtype == step[name].dtype and torch.equal(tensor, step[name])
    torch.distributed.barrier()
if rank == 0:
    # The other rank is gone now: that is an error, and not a wait.
    print("done", flush=True)
    time.sleep(1)
    try:
        while True:
            messages.send(steps[3], 1)
    except OSError:
        pass
else:
    print("done", flush=True)
import os
os._exit(0)
"""


def test_tensors_arrive_in_order_and_whole(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=60) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [out for out, _ in said] == ["done\n", "done\n"], said
