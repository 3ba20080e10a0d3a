"""What ranks can do besides what vLLM's workers can."""

from __future__ import annotations

from edgellm_vllm.placement import PlacementReport
from edgellm_vllm.pulse import Pulse
from edgellm_vllm.steps import WholeSteps


class WorkerExtension(PlacementReport, Pulse, WholeSteps):
    """Mixed into vLLM's worker class (its `worker_extension_cls`)."""
