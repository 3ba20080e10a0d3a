"""Shared memory between ranks of one cell, gloo between cells."""

from __future__ import annotations

import os

import torch.distributed
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


class CellAwareCpuCommunicator(CpuCommunicator):
    """vLLM's own takes shared memory whenever all ranks agree on its name, which they also do across machines."""

    def _all_group_ranks_share_shm_group_name(self) -> bool:
        addresses: list[str] = [""] * self.world_size
        # A member's address is its cell's: the ranks of a cell, and no others, have one /dev/shm.
        torch.distributed.all_gather_object(addresses, os.environ["VLLM_HOST_IP"], group=self.device_group)
        return len(set(addresses)) == 1 and super()._all_group_ranks_share_shm_group_name()
