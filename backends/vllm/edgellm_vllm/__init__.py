"""vLLM over Ray as an EdgeLLM engine.

In the node (light: no torch, Ray or vLLM):

* `backend`: which command and environment each member of a cluster gets.

In the cell, as those commands:

* `head`: the requester's process: starts the Ray head and serves `proto/backend.proto`. It uses `service` (gRPC),
  `engine` (vLLM's AsyncLLM: load, generate, placement), `prompts` (requests to token ids, and their validation), `pace` and
  `paced_outputs` (fast tokens share messages of gRPC, and events of the API).
* `member`: a host's process: waits for the head and joins it as a Ray node.
* `ray_node`: both roles' `ray start` child. `events`: what both print.
* `resumable_core`, `token_log`: engine cores come and go, requests go on. `configuration`: vLLM's, for a plan.
* `progress`: from the forked engine core back to the head. `imports`, `models`: what makes imports fewer and faster.
* `fork_server`, `fork_client`: Ray's workers on a host that is kept ready for the next cluster.
* `measure`: what this machine's devices can do, for its advert.

Inside vLLM's own processes:

* `executor`: Ray executor that puts rank r where the plan says. `placement`: what each rank reports about itself.
* `preload`: what Ray's worker process does before it has work. `gloo`: fewer threads for its process groups.
* `steps`: fewer messages and no pause between the engine core's steps.
* `resumed_requests`: a request that comes with tokens of its answer, in the core and in its ranks.
* `pulse`, `watch`: which rank is silent, gone or slow.
* `stage_messages`: tensors between pipeline stages in one crossing of the network.
* `platform`, `worker`, `communicator`: what vLLM's CPU backend lacks to run over Ray; unused with CUDA.
* `cuda_head`: vLLM's CUDA platform for a head that has no GPU.
"""

from __future__ import annotations

import os

PLATFORM_SWITCH = "EDGELLM_VLLM_PLATFORM"
"""Set by the backend to a key of `_PLATFORMS`: vLLM in any other program of this environment keeps its own platform."""

_PLATFORMS = {
    "cpu": "edgellm_vllm.platform.RayCpuPlatform",
    "cuda-head": "edgellm_vllm.cuda_head.HeadCudaPlatform",
}


def platform_plugin() -> str | None:
    """vLLM's platform plugin hook: the class to use, or None to leave vLLM alone."""
    return _PLATFORMS.get(os.environ.get(PLATFORM_SWITCH, ""))
