"""Is there an engine, does it fit together, and what does it run on?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgellm.doctor.check import Check, Examination, fail, ok, warn
from edgellm.doctor.system import System
from edgellm.engine.backend import DeviceKind
from edgellm.errors import EdgeError

_NEXT_TO_TORCH = ("torchvision", "torchaudio", "torchcodec")
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia-uvm")


def check_engines(system: System, examination: Examination) -> Iterator[Check]:
    """The engine and its versions, packages that break it, the GPU and its driver."""
    kind: DeviceKind | None = None
    name = f"engine {examination.backend}"
    try:
        backend = system.backend(examination.backend)
        versions = ", ".join(f"{part} {version}" for part, version in backend.versions().items())
        kind = backend.device_kind()
        yield ok(name, f"{versions} (for {'CPUs' if kind == 'cpu' else 'NVIDIA GPUs'})")
    except EdgeError as error:
        yield fail(name, str(error), error.remedy)
    yield from _strays(system)
    yield _gpu(system, kind)


def _strays(system: System) -> Iterator[Check]:
    torch = system.version("torch")
    if torch is None or "+cpu" not in torch:
        return
    found = {name: system.version(name) for name in _NEXT_TO_TORCH}
    strays = [name for name, version in found.items() if version is not None and "+cpu" not in version]
    name = "torch's companions"
    if strays:
        yield fail(
            name,
            f"{', '.join(strays)} built for CUDA next to torch {torch}: no model can be loaded",
            f"{system.python()} -m pip uninstall -y {' '.join(strays)}",
        )
    else:
        yield ok(name, f"nothing that does not fit torch {torch}")


def _gpu(system: System, kind: DeviceKind | None) -> Check:
    name = "GPU"
    driver = system.read("/proc/driver/nvidia/version")
    if driver is None:
        if kind == "cuda":
            return fail(
                name,
                "the engine is for NVIDIA GPUs, and no NVIDIA driver is loaded",
                "modprobe nvidia  (or install the driver; without a GPU: pip install 'edgellm-vllm[cpu]')",
            )
        return ok(name, "none, and none is needed: the engine runs on the CPU")
    smi = system.which("nvidia-smi")
    if smi is None:
        return _problem(
            kind, "a driver is loaded but there is no nvidia-smi", "install the NVIDIA driver's tools"
        )
    listed = system.run([smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if listed.returncode != 0 or not listed.stdout.strip():
        remedy = (
            "reboot: driver and tools differ" if "mismatch" in listed.said else f"run {smi} and do as it says"
        )
        return _problem(kind, f"nvidia-smi failed: {listed.said}", remedy)
    gpus = "; ".join(line.strip() for line in listed.stdout.strip().splitlines())
    if kind == "cpu":
        return warn(name, f"{gpus}: unused by a CPU engine", "pip install 'edgellm-vllm[cuda]'")
    if missing := [path for path in _GPU_DEVICES if not system.exists(path)]:
        return fail(name, f"{gpus}, but {' and '.join(missing)} is missing", "nvidia-modprobe -u -c=0")
    for path in _GPU_DEVICES:
        if error := system.open_error(path):
            return fail(name, f"{gpus}, but {path} cannot be opened: {error}", f"sudo chmod 666 {path}")
    return _driver_is_new_enough(system, smi, gpus)


def _driver_is_new_enough(system: System, smi: str, gpus: str) -> Check:
    # The header is the only place that tells which CUDA the driver supports. A driver runs what was built for any
    # minor release of its own major one and of all before ("CUDA Compatibility", NVIDIA).
    header = re.search(r"CUDA (?:UMD )?Version:\s*(\d+)\.(\d+)", system.run([smi]).stdout)
    built = system.version("nvidia-cuda-runtime") or system.version("nvidia-cuda-runtime-cu12")
    if header and built and int(header.group(1)) < int(built.split(".")[0]):
        return fail(
            "GPU",
            f"{gpus}: the driver supports CUDA {header.group(1)}.{header.group(2)}, the engine needs {built}",
            f"install an NVIDIA driver for CUDA {built.split('.')[0]} or newer",
        )
    return ok("GPU", gpus)


def _problem(kind: DeviceKind | None, detail: str, remedy: str) -> Check:
    return fail("GPU", detail, remedy) if kind == "cuda" else warn("GPU", detail, remedy)
