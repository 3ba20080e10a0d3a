"""Which devices a host lends: measured by the backend's own program, capped by what the owner asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import structlog
import trio

from edgellm.engine.backend import Backend
from edgellm.errors import EngineError, UsageError
from edgellm.types.advert import Device

log = structlog.get_logger(__name__)

MEASURE_TIMEOUT_S = 180.0
CPU_MEMORY_SHARE = 0.7
"""Of the memory that is free, lent by default on a CPU host: its owner and the node need the rest."""
MAX_CPU_DEVICES = 64


class _Measured(msgspec.Struct, frozen=True):
    id: str
    kind: str
    name: str
    memory_bytes: int
    bandwidth_bytes_s: float
    flops: float
    kv_layout: str


class _Report(msgspec.Struct, frozen=True):
    devices: list[_Measured]


async def measure(backend: Backend, versions: Mapping[str, str], cache: Path) -> tuple[Device, ...]:
    """All devices of this machine with their rates, from `cache` when measured before with these versions and settings.

    Free memory is part of the cached figure only for CUDA devices; `lend` caps CPU memory by what is free now.
    Raises EngineError when the backend's program fails.
    """
    known_by = [backend.name, sorted(versions.items()), sorted(backend.settings().items())]
    key = hashlib.sha256(json.dumps(known_by).encode()).hexdigest()[:16]
    remembered = cache / f"devices-{key}.json"
    if remembered.exists():
        try:
            return _devices(remembered.read_bytes())
        except (msgspec.DecodeError, OSError):
            log.warning("measuring again: the remembered figures cannot be read", file=str(remembered))
    report = await _run(backend)
    devices = _devices(report)
    remembered.write_bytes(report)
    return devices


async def _run(backend: Backend) -> bytes:
    with trio.move_on_after(MEASURE_TIMEOUT_S):
        done = await trio.run_process(
            backend.measure_command(), capture_stdout=True, capture_stderr=True, check=False
        )
        lines = done.stdout.splitlines()
        if done.returncode == 0 and lines:
            return bytes(lines[-1])
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise EngineError(
            f"the {backend.name} backend could not measure this machine: {said[-1]}",
            remedy="run `edgellm doctor`",
        )
    raise EngineError(
        f"measuring this machine took longer than {MEASURE_TIMEOUT_S:g} s", remedy="run `edgellm doctor`"
    )


def _devices(report: bytes) -> tuple[Device, ...]:
    decoded = msgspec.json.decode(report, type=_Report)
    return tuple(Device(**msgspec.structs.asdict(item)) for item in decoded.devices)


def lend(
    measured: tuple[Device, ...], *, wanted: str | None, memory_bytes: int | None, free_bytes: int
) -> tuple[Device, ...]:
    """The devices to lend, from all that were measured. Pure.

    `wanted` is what `--devices` says: for GPUs their ids, comma-separated ("0,2"); for a CPU how many devices it
    shall count as ("2": two ranks, each with its share). `memory_bytes` caps the sum over all devices; `free_bytes`
    is the main memory that is free now. Raises UsageError when there is nothing to lend or `wanted` names what does
    not exist.
    """
    if not measured:
        raise UsageError("this machine has no device to lend", remedy="run `edgellm doctor`")
    on_cpu = measured[0].kind == "cpu"
    chosen = _cpu_devices(measured[0], wanted, free_bytes) if on_cpu else _gpu_devices(measured, wanted)
    if memory_bytes is not None:
        share = memory_bytes // len(chosen)
        chosen = tuple(replace(device, memory_bytes=min(device.memory_bytes, share)) for device in chosen)
    return chosen


def _cpu_devices(cpu: Device, wanted: str | None, free_bytes: int) -> tuple[Device, ...]:
    if wanted is not None and (not wanted.isdecimal() or not 1 <= int(wanted) <= MAX_CPU_DEVICES):
        raise UsageError(
            f"--devices {wanted}: on a CPU this is a number, how many devices it counts as",
            remedy="leave it out, or say for example --devices 2",
        )
    count = int(wanted) if wanted is not None else 1
    lent = int(min(cpu.memory_bytes, free_bytes) * CPU_MEMORY_SHARE)
    return tuple(
        Device(
            id=str(index),
            kind=cpu.kind,
            name=cpu.name,
            memory_bytes=lent // count,
            bandwidth_bytes_s=cpu.bandwidth_bytes_s / count,
            flops=cpu.flops / count,
            kv_layout=cpu.kv_layout,
        )
        for index in range(count)
    )


def _gpu_devices(measured: tuple[Device, ...], wanted: str | None) -> tuple[Device, ...]:
    if wanted is None:
        return measured
    ids = [part.strip() for part in wanted.split(",") if part.strip()]
    by_id = {device.id: device for device in measured}
    unknown = [name for name in ids if name not in by_id]
    if unknown or not ids:
        raise UsageError(
            f"--devices {wanted}: there is no device {', '.join(unknown) or 'named'}",
            remedy=f"this machine has {', '.join(by_id)}",
        )
    return tuple(by_id[name] for name in dict.fromkeys(ids))
