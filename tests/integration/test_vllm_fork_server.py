"""Ray's workers from one process that has imported everything, without Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("edgellm_vllm", reason="the distribution in backends/vllm is not installed")

from edgellm_vllm import fork_client

# Says who it is and what it has, and stays for as long as it is told.
WORKER = """
import os, sys, time
import torch
print(os.getpid(), sys.argv[1], torch.get_num_threads(), os.environ["OWN"], "vllm" in sys.modules, os.getcwd(), flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    directory = tmp_path_factory.mktemp("workers")
    (directory / "worker.py").write_text(WORKER)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgellm_vllm.fork_server"],
        env={**environment(directory), "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 30
    while not (directory / "socket").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process, directory
    process.kill()
    process.wait()


def environment(directory: Path) -> dict[str, str]:
    return {
        **os.environ,
        fork_client.SOCKET_VARIABLE: str(directory / "socket"),
        "EDGELLM_VLLM_PLATFORM": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HOST_IP": "127.0.0.1",
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "2",
        "OWN": "yes",
    }


def start(directory: Path, seconds: float) -> subprocess.Popen[str]:
    """As Ray starts one in a cell, with options of its own setup_worker.py and a flag for Python in front."""
    options = ("--serialized-runtime-env-context={}", "--language=PYTHON", "-s")
    return subprocess.Popen(
        [sys.executable, fork_client.__file__, *options, str(directory / "worker.py"), str(seconds)],
        env=environment(directory),
        stdout=subprocess.PIPE,
        text=True,
        cwd=directory,
    )


def said(client: subprocess.Popen[str]) -> list[str]:
    assert client.stdout is not None
    return client.stdout.readline().split()


def gone(pid: int) -> bool:
    """Within two seconds; one that nobody has waited for yet is gone, too."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_a_worker_has_all_that_was_imported_and_its_own_environment(
    server: tuple[subprocess.Popen[bytes], Path],
) -> None:
    _, directory = server
    first = start(directory, 0.1)
    assert said(first)[1:] == ["0.1", "2", "yes", "True", str(directory)]
    assert first.wait(timeout=5) == 0
    begun = time.monotonic()
    second = start(directory, 0.0)
    pid = int(said(second)[0])
    assert time.monotonic() - begun < 2
    assert second.wait(timeout=5) == 0
    assert gone(pid)


def test_a_worker_ends_with_what_ray_kills(server: tuple[subprocess.Popen[bytes], Path]) -> None:
    _, directory = server
    for _ in range(5):
        client = start(directory, 60)
        pid = int(said(client)[0])
        assert Path(f"/proc/{pid}").exists()
        client.kill()
        client.wait()
        assert gone(pid)


def test_workers_end_with_the_server_and_without_one_they_are_ordinary(
    server: tuple[subprocess.Popen[bytes], Path],
) -> None:
    process, directory = server
    client = start(directory, 60)
    pid = int(said(client)[0])
    process.kill()
    process.wait()
    assert gone(pid)
    assert client.wait(timeout=5) == 0
    ordinary = start(directory, 0.0)
    assert said(ordinary)[3:5] == ["yes", "False"]
    assert ordinary.wait(timeout=10) == 0
