"""A head and workers of the vLLM backend, each in namespaces of its own (network, mount, PID), without cells or nodes."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import grpc

from edgellm.engine.backend import Backend, KvSharing, MemberSpec
from edgellm.engine.registry import load_backend
from edgellm.wire import backend_pb2 as pb
from edgellm.wire import backend_pb2_grpc

HEAD = "10.88.77.1"
# A private /tmp and /dev/shm, as a cell has them; the PID namespace dies with its first process.
# The model may lie in the /tmp that they do not see.
_ISOLATE = (
    'mount --bind "$1" /mnt && mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs /tmp && mkdir /tmp/model && '
    'mount --move /mnt /tmp/model && shift && exec "$@"'
)
MODEL_PATH = "/tmp/model"
"""Where every member sees a model: the head its configuration and tokenizer alone."""


@dataclass
class Cluster:
    """Running members. `directory` is visible to all of them at the same path."""

    directory: Path
    members: list[subprocess.Popen[str]] = field(default_factory=list)
    channel: grpc.Channel | None = None

    @property
    def stub(self) -> backend_pb2_grpc.BackendStub:
        assert self.channel is not None
        return backend_pb2_grpc.BackendStub(self.channel)  # type: ignore[no-untyped-call]

    def events(self, index: int) -> list[dict[str, object]]:
        """What member `index` (0: the head) has printed so far."""
        text = (self.directory / f"{index}.events").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def log(self, index: int) -> str:
        return (self.directory / f"{index}.log").read_text()


def worker_address(index: int) -> str:
    """Address of worker `index`, from 1."""
    return f"10.88.77.{index + 1}"


@contextlib.contextmanager
def cluster(
    devices: Sequence[int],
    model: Path,
    *,
    threads: int = 1,
    kv: KvSharing | None = None,
    standby: bool = False,
) -> Iterator[Cluster]:
    """A head, and one worker for each number of CPU ranks in `devices`; all gone at the end. `model` is a directory."""
    backend = load_backend("vllm")
    token = secrets.token_hex(16)
    tag = secrets.token_hex(3)
    namespaces = [f"vb{tag}-{index}" for index in range(len(devices) + 1)]
    hub = f"vb{tag}-hub"
    directory = Path(tempfile.mkdtemp(prefix="edgellm-backend-", dir="/run"))
    running = Cluster(directory)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        head_model = directory / "model"
        shutil.copytree(model, head_model, ignore=shutil.ignore_patterns("*.safetensors"))
        _network(stack, hub, namespaces)
        for index, namespace in enumerate(namespaces):
            member = MemberSpec(
                role="head" if index == 0 else "worker",
                address=worker_address(index),
                head_address=HEAD,
                head_port=6379,
                cluster_token=token,
                devices=() if index == 0 else tuple(str(device) for device in range(devices[index - 1])),
                threads=threads,
                socket_path=str(directory / "engine.sock"),
                model_path=MODEL_PATH,
                stage_index=index - 1,
                standby=standby and index > 0,
                kv=kv,
            )
            running.members.append(_start(stack, backend, member, namespace, directory, index, model))
        running.channel = stack.enter_context(grpc.insecure_channel(f"unix:{directory}/engine.sock"))
        yield running


def _network(stack: contextlib.ExitStack, hub: str, namespaces: Sequence[str]) -> None:
    for name in (hub, *namespaces):
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "delete", name)
    _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
    _ip("-n", hub, "link", "set", "bridge", "up")
    for index, name in enumerate(namespaces):
        _ip("-n", hub, "link", "add", f"port{index}", "type", "veth", "peer", "name", "edge0", "netns", name)
        _ip("-n", hub, "link", "set", f"port{index}", "master", "bridge", "up")
        _ip("-n", name, "address", "add", f"{worker_address(index)}/24", "dev", "edge0")
        _ip("-n", name, "link", "set", "edge0", "up")
        _ip("-n", name, "link", "set", "lo", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _start(
    stack: contextlib.ExitStack,
    backend: Backend,
    member: MemberSpec,
    namespace: str,
    directory: Path,
    index: int,
    model: Path,
) -> subprocess.Popen[str]:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **backend.environment(member)}
    isolate = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        _ISOLATE,
        "sh",
        str(model if member.role == "worker" else directory / "model"),
    ]
    events: IO[str] = stack.enter_context((directory / f"{index}.events").open("w"))
    log: IO[str] = stack.enter_context((directory / f"{index}.log").open("w"))
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, *isolate, *backend.command(member)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=events,
        stderr=log,
        text=True,
        cwd="/",
    )
    stack.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(timeout=20)


def wait_for_event(running: Cluster, index: int, event: str, timeout_s: float) -> None:
    """Returns once member `index` has printed `event`; raises with its log when it ends or takes too long."""
    deadline = time.monotonic() + timeout_s
    while not any(entry["event"] == event for entry in running.events(index)):
        ended = running.members[index].poll() is not None
        if ended or time.monotonic() > deadline:
            raise AssertionError(
                f"member {index}: no {event!r}\n{running.events(index)}\n{running.log(index)[-3000:]}"
            )
        time.sleep(0.05)


def stages(*layers: tuple[int, int]) -> list[pb.Stage]:
    """Stage i with these layers on worker i + 1."""
    return [
        pb.Stage(address=worker_address(index), first_layer=first, end_layer=end)
        for index, (first, end) in enumerate(layers, start=1)
    ]
