"""Python workers for Ray, each forked from one process that has imported all that a rank needs.

A survivor of a lost cluster is to run a rank of the next one at once. Ray would start an interpreter, which imports for
seconds; here that was done before, once for all ranks that this member ever runs, and they share the memory of it. Only with
CPUs: what CUDA's libraries keep of a device does not survive a fork.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from edgellm_vllm.fork_client import ACCEPTED, READY, SOCKET_VARIABLE

_PR_SET_PDEATHSIG = 1
_NO_JOB = "ffffffff"
_BACKLOG = 16
_TIMEOUT_S = 10.0


def main() -> None:
    """Serves until it is killed, as it is when its parent ends."""
    _die_with_parent()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(os.environ[SOCKET_VARIABLE])
    # Before the imports: who asks early waits.
    listener.listen(_BACKLOG)
    # Ray reads these when it is imported, and never again. Workers of no job in particular it gives to any; and they end when
    # this process is gone, as others do with Ray's own.
    os.environ["RAY_JOB_ID"] = _NO_JOB
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())
    import edgellm_vllm.preload  # noqa: F401

    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
        # A thread does not come along, but the locks that it holds do.
        raise RuntimeError("an import has started a thread: workers cannot be forked from here")
    gc.freeze()
    Path(os.environ[SOCKET_VARIABLE]).with_name(READY).touch()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        try:
            order, descriptors = _order(connection)
            connection.sendall(ACCEPTED)
        except (OSError, ValueError):
            connection.close()
            continue
        if os.fork() == 0:
            listener.close()
            _work(connection, order, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.close()


def _order(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    connection.settimeout(_TIMEOUT_S)
    head, descriptors, _, _ = socket.recv_fds(connection, 4, 3, socket.MSG_WAITALL)
    if len(head) != 4 or len(descriptors) != 3:
        raise ValueError("not a worker's order")
    size = int.from_bytes(head, "big")
    with connection.makefile("rb") as stream:
        order: dict[str, Any] = json.loads(stream.read(size))
    connection.settimeout(None)
    return order, descriptors


def _work(connection: socket.socket, order: dict[str, Any], descriptors: list[int]) -> None:
    status = 1
    try:
        _die_with_parent()
        _die_with(connection)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(order["directory"])
        os.environ.clear()
        os.environ.update(order["environment"])
        _use_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        sys.argv = order["arguments"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def _use_threads(count: int) -> None:
    # The server has one, for a pool of OpenMP's would not survive a fork; the variable was read when it started.
    import torch

    torch.set_num_threads(count)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _die_with(connection: socket.socket) -> None:
    """Ray kills the process that it started: that is the one at the other end. The kernel does the same to this one then."""
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([connection], [], [], 0)[0]:
        # It was gone before.
        os._exit(1)


if __name__ == "__main__":
    main()
