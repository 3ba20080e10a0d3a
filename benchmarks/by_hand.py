"""The same cluster without EdgeLLM: `ray start` on each machine, then a script with vLLM's engine, or vLLM's own API server,
over plain Ethernet.

Engine settings, CPU threads, priority and vLLM's platform plugin (without which vLLM refuses Ray on CPU) are EdgeLLM's own.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import by_hand_engine
from benchmarks.chat_load import Address
from tests.system.machine import Machine
from tests.system.process import Process

_PORT = 6379
SERVER_PORT = 8000
_RAY_TIMEOUT_S = 60.0
_ENGINE_TIMEOUT_S = 180.0
_ANSWER_TIMEOUT_S = 120.0
# The engine's ranks use shared memory and sockets of their own; Ray's smallest store is 75 MiB.
_OBJECT_STORE_BYTES = 100_000_000
# Enough for the benchmarks' models and contexts, as EdgeLLM's planner has it for each of them.
_KV_CACHE_BYTES = 128 << 20
_STEP_TOKENS = 2048
# As in a cell (`CellSpec.nice`): else whatever runs beside the benchmark would slow down one side only.
_NICE = ("nice", "-n", "5")


@dataclass(frozen=True, slots=True)
class Token:
    at_s: float
    """`time.monotonic` when the asker had it."""
    id: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What the engine is to load; `layers` are those of each stage, one worker each."""

    model: Path
    layers: tuple[int, ...]
    max_model_len: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class ClusterByHand:
    """A loaded engine. `phases`: when each step of its bring-up was done, in seconds since it began."""

    socket: Path
    began_s: float
    phases: Mapping[str, float]

    def ask(self, prompt: str, max_tokens: int) -> tuple[Token, ...]:
        """The greedy answer, exactly `max_tokens` long."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_TIMEOUT_S)
            connection.connect(str(self.socket))
            connection.sendall(json.dumps({"prompt": prompt, "max_tokens": max_tokens}).encode() + b"\n")
            tokens: list[Token] = []
            with connection.makefile("rb") as lines:
                for line in lines:
                    now = time.monotonic()
                    tokens += [Token(now, token) for token in json.loads(line)]
        return tuple(tokens)


@contextmanager
def cluster_by_hand(head: Machine, workers: Sequence[Machine], shape: Shape) -> Iterator[ClusterByHand]:
    """Brings the cluster up, step by step; everything of it is gone at the end.

    The workers' `ray start` run at the same time, as two people could do it.
    """
    began = time.monotonic()
    phases: dict[str, float] = {}

    def done(phase: str) -> None:
        phases[phase] = time.monotonic() - began

    with ExitStack() as stack:
        _start_cluster(stack, head, workers, done)
        socket_path = head.runtime / "by-hand.sock"
        stack.callback(socket_path.unlink, missing_ok=True)
        settings = {"engine": _engine_arguments(shape), "socket": str(socket_path)}
        engine = head.start(
            [*_NICE, sys.executable, by_hand_engine.__file__, json.dumps(settings)],
            env=_engine_environment(head, shape),
        )
        stack.callback(_end, engine)
        engine.wait_for('"imported"', _ENGINE_TIMEOUT_S, stream="stdout")
        done("import")
        engine.wait_for('"ready"', _ENGINE_TIMEOUT_S, stream="stdout")
        done("engine")
        yield ClusterByHand(socket_path, began, phases)


@contextmanager
def server_by_hand(
    head: Machine, workers: Sequence[Machine], shape: Shape, options: Sequence[str]
) -> Iterator[Address]:
    """Where `vllm serve` answers over such a cluster, on the head's loopback; everything of it is gone at the end.

    `options` are the server's own. The command itself does not start from the CPU wheel, whose name is not vLLM's; with one API
    server it runs this module.
    """
    with ExitStack() as stack:
        _start_cluster(stack, head, workers, lambda _: None)
        words = [*_NICE, sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", *options]
        for name, value in _engine_arguments(shape).items():
            option = f"--{name.replace('_', '-')}"
            words.append(option if value is True else f"{option}={value}")
        words += ["--host=127.0.0.1", f"--port={SERVER_PORT}", "--disable-uvicorn-access-log"]
        server = head.start(words, env=_engine_environment(head, shape))
        stack.callback(_end, server)
        server.wait_for("Application startup complete", _ENGINE_TIMEOUT_S)
        yield "127.0.0.1", SERVER_PORT


def _start_cluster(
    stack: ExitStack, head: Machine, workers: Sequence[Machine], done: Callable[[str], None]
) -> None:
    for machine in (head, *workers):
        stack.callback(shutil.rmtree, machine.namespaces.inside(_directory(machine)), ignore_errors=True)
    _start_ray(stack, head, "--head", f"--port={_PORT}", "--num-gpus=0", "--include-dashboard=false")
    done("ray head")
    joining = [
        _begin_ray(stack, worker, f"--address={head.address}:{_PORT}", "--num-gpus=1") for worker in workers
    ]
    for process in joining:
        process.wait_for("Ray runtime started", _RAY_TIMEOUT_S)
    done("ray workers")


def _start_ray(stack: ExitStack, machine: Machine, *options: str) -> None:
    _begin_ray(stack, machine, *options).wait_for("Ray runtime started", _RAY_TIMEOUT_S)


def _begin_ray(stack: ExitStack, machine: Machine, *options: str) -> Process:
    common = (
        f"--node-ip-address={machine.address}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        f"--temp-dir={_directory(machine)}/ray",
        "--num-cpus=1",
        "--disable-usage-stats",
        "--block",
    )
    machine.namespaces.inside(_directory(machine)).mkdir(exist_ok=True)
    process = machine.start([*_NICE, "ray", "start", *options, *common], env=_environment(machine))
    stack.callback(_end, process)
    return process


def _end(process: Process) -> None:
    process.end_now()


def _directory(machine: Machine) -> str:
    return "/tmp/by-hand"


def _environment(machine: Machine) -> dict[str, str]:
    return {
        "VLLM_HOST_IP": machine.address,
        "GLOO_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCH_COMPILE_DISABLE": "1",
        "EDGELLM_VLLM_PLATFORM": "cpu",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TMPDIR": _directory(machine),
    }


def _engine_environment(head: Machine, shape: Shape) -> dict[str, str]:
    return _environment(head) | {
        "RAY_ADDRESS": f"{head.address}:{_PORT}",
        "VLLM_PP_LAYER_PARTITION": ",".join(map(str, shape.layers)),
    }


def _engine_arguments(shape: Shape) -> dict[str, object]:
    return {
        "model": str(shape.model),
        "pipeline_parallel_size": len(shape.layers),
        "distributed_executor_backend": "ray",
        "max_model_len": shape.max_model_len,
        "max_num_seqs": shape.max_num_seqs,
        # As in a session: what a step may hold counts for throughput.
        "max_num_batched_tokens": _STEP_TOKENS,
        "kv_cache_memory_bytes": _KV_CACHE_BYTES,
        "enforce_eager": True,
        "generation_config": "vllm",
        "disable_log_stats": True,
    }
