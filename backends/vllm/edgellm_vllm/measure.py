"""Measures this machine's devices: what decoding (memory bandwidth) and prefill (matrix multiply) are bound by.

`python -m edgellm_vllm.measure` prints one line of JSON. Tables of known devices are always out of date; a second of measuring
is not. Every figure is the best of several runs: the device's rate, not that of whatever else ran meanwhile.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

COPY_BYTES = 256 << 20
MATRIX = {"cpu": 1024, "cuda": 8192}
RUNS = 5


def best_s(run: Callable[[], Any], synchronize: Callable[[], None]) -> float:
    """The shortest of `RUNS` runs, after one that is not counted."""
    run()
    synchronize()
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - begun)
    return min(times)


def rates(device: torch.device, synchronize: Callable[[], None]) -> tuple[float, float]:
    """(memory bandwidth in bytes/s, matrix-multiply rate in FLOP/s) of `device` in bfloat16.

    A copy reads and writes every byte once; an n by n product takes 2 n^3 operations.
    """
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = best_s(lambda: target.copy_(source), synchronize)
    n = MATRIX[device.type]
    left = torch.randn(n, n, dtype=torch.bfloat16, device=device)
    product_s = best_s(lambda: left @ left, synchronize)
    return 2 * COPY_BYTES / copy_s, 2 * n**3 / product_s


def cpu() -> dict[str, Any]:
    bandwidth, flops = rates(torch.device("cpu"), lambda: None)
    memory = int(next(line for line in meminfo() if line.startswith("MemTotal")).split()[1]) * 1024
    return {
        "id": "0",
        "kind": "cpu",
        "name": cpu_name(),
        "memory_bytes": memory,
        "bandwidth_bytes_s": bandwidth,
        "flops": flops,
        "kv_layout": "amx" if torch.cpu._is_amx_tile_supported() else f"vec {platform.machine()}",
    }


def meminfo() -> list[str]:
    return Path("/proc/meminfo").read_text().splitlines()


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def cuda() -> list[dict[str, Any]]:
    devices = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        free, _ = torch.cuda.mem_get_info(device)
        bandwidth, flops = rates(device, lambda device=device: torch.cuda.synchronize(device))  # type: ignore[misc]
        devices.append(
            {
                "id": str(index),
                "kind": "cuda",
                "name": torch.cuda.get_device_name(device),
                "memory_bytes": free,
                "bandwidth_bytes_s": bandwidth,
                "flops": flops,
                "kv_layout": "sm{}{}".format(*torch.cuda.get_device_capability(device)),
            }
        )
    return devices


def main() -> None:
    devices = cuda() if torch.cuda.is_available() else [cpu()]
    print(json.dumps({"devices": devices}))


if __name__ == "__main__":
    main()
