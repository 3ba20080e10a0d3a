"""What a member's cell may take of its machine, by its lease. Pure."""

from __future__ import annotations

from edgellm.cells.spec import Limits
from edgellm.engine.backend import DeviceKind
from edgellm.planning.fit import ENGINE_BYTES, KV_SERVER_BYTES

_GIB = 1 << 30

HEAD_BYTES = 8 * _GIB
"""A head holds no weights. Measured: its processes have about 2 GiB; tokenizers and many requests at once want more."""

CUDA_HOST_BYTES = 4 * _GIB
"""Main memory of a rank on a GPU: an estimate (Python, CUDA's own, pinned buffers, one tensor on its way), not measured."""

SPARE_DEVICES = 1
"""A lease's memory counts the engine's own need for each device. Once more as a margin: a cell ends above its limit, and an
honest engine must not. What members keep ready for their next ranks (`ClusterPlan.standby`) is that need again."""

MIN_PROCESSES, PROCESSES_A_DEVICE, PROCESSES_A_THREAD = 256, 128, 64
"""Threads counted. Measured on 2 CPUs: 100 of a worker, 140 of a head; pools grow with the number of CPUs. Not many more: a
thousand forks of a Ray worker share so many pages that the kernel takes a minute to end them."""


def cell_limits(
    kind: DeviceKind,
    *,
    devices: int,
    memory_bytes: int,
    threads: int,
    usable_threads: int,
    is_head: bool,
    standby: bool = False,
) -> Limits:
    """`memory_bytes` is what the lease gives on each of its `devices`; `threads` are lent, `usable_threads` there.

    On a GPU the lease's memory is the GPU's, and the engine keeps to it by itself: it gets its KV cache in bytes.
    """
    spare = SPARE_DEVICES + (devices if standby else 0)
    if is_head:
        memory = HEAD_BYTES
    elif kind == "cpu":
        memory = devices * memory_bytes + spare * ENGINE_BYTES[kind]
    else:
        memory = (devices + spare) * CUDA_HOST_BYTES + KV_SERVER_BYTES["cpu"]
    return Limits(
        memory_bytes=memory,
        processes=MIN_PROCESSES + PROCESSES_A_DEVICE * max(devices, 1) + PROCESSES_A_THREAD * usable_threads,
        cpus=threads if threads < usable_threads else None,
    )
