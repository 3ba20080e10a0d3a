"""vLLM's CUDA platform on a head without a GPU: it makes the configuration and schedules; no rank ever runs in it.

NVIDIA's driver library (libcuda.so.1) must be installed all the same: vLLM's kernels are linked with it, and importing a
model's class imports them.
"""

from __future__ import annotations

from vllm.platforms.cuda import CudaPlatformBase
from vllm.platforms.interface import DeviceCapability

# The least that runs bfloat16. Ranks choose their kernels themselves, by the devices they have.
_CAPABILITY = DeviceCapability(major=8, minor=0)


class HeadCudaPlatform(CudaPlatformBase):
    """Answers what vLLM asks about "the" device while it makes a configuration for devices elsewhere."""

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        """A capability that any device of a cluster has."""
        return _CAPABILITY

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """A name for logs."""
        return "a member's GPU"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """0 bytes: vLLM then takes its defaults for small devices."""
        return 0

    @classmethod
    def device_count(cls) -> int:
        """None here."""
        return 0
