"""Shared memory between ranks of one cell, TCP between cells."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

from edgellm_vllm.stage_messages import StageMessages


class CellAwareCpuCommunicator(CpuCommunicator):
    """vLLM's own takes shared memory whenever all ranks agree on its name, which they also do across machines."""

    supports_tensor_dict: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stages: StageMessages | None = None
        if self.unique_name.startswith("pp") and not self.supports_tensor_dict:
            self._stages = StageMessages(self.cpu_group, os.environ["VLLM_HOST_IP"])
            self.supports_tensor_dict = True

    def send_tensor_dict(self, tensor_dict: dict[str, torch.Tensor | Any], dst: int) -> None:
        """To the rank `dst` of this group."""
        if self._stages is None:
            super().send_tensor_dict(tensor_dict, dst)
        else:
            self._stages.send(tensor_dict, self.ranks[dst])

    def recv_tensor_dict(self, src: int) -> dict[str, torch.Tensor | Any]:
        """From the rank `src` of this group."""
        if self._stages is None:
            return dict(super().recv_tensor_dict(src))
        return dict(self._stages.receive(self.ranks[src]))

    def _all_group_ranks_share_shm_group_name(self) -> bool:
        addresses: list[str] = [""] * self.world_size
        # A member's address is its cell's: the ranks of a cell, and no others, have one /dev/shm.
        torch.distributed.all_gather_object(addresses, os.environ["VLLM_HOST_IP"], group=self.device_group)
        return len(set(addresses)) == 1 and super()._all_group_ranks_share_shm_group_name()
