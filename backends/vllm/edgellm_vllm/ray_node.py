"""The `ray start` child of a member, and how to tell that a head's Ray is really there."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from edgellm_vllm import fork_client

# Control traffic is all that Ray's object store carries here; the smallest store that Ray accepts is 75 MiB.
_OBJECT_STORE_BYTES = 100_000_000
_STOP_TIMEOUT_S = 8.0
_STARTED = b"Ray runtime started"

# Imports first and waits for a line: a worker's second of imports passes while the head's Ray starts. A head would also serve
# Ray's remote client, for which nobody here asks and which takes a second of a core; against that Ray has no option.
_RAY_START = (
    "import os, sys, ray.scripts.scripts as scripts, ray._private.ray_constants as constants; "
    "scripts.get_ray_client_dependency_error = lambda: ImportError('not served'); "
    # Ray has no option for it either: its workers come from elsewhere.
    f"constants.SETUP_WORKER_FILENAME = {fork_client.__file__!r} "
    f"if {fork_client.SOCKET_VARIABLE!r} in os.environ else constants.SETUP_WORKER_FILENAME; "
    "sys.stdin.readline() and scripts.main()"
)

# RFC 9113, 3.4: the client's preface followed by an empty SETTINGS frame; a server answers with its own SETTINGS.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04\x00" + bytes(4)
_FRAME_HEADER_BYTES = 9
_SETTINGS = 4


def head_arguments(address: str, port: int) -> tuple[str, ...]:
    """`ray start` arguments of a head without devices. It runs no tasks: no CPU, so no idle worker imports anything."""
    return (
        "--head",
        f"--port={port}",
        "--num-gpus=0",
        "--num-cpus=0",
        "--include-dashboard=false",
        "--no-monitor",
        *_common(address),
    )


def worker_arguments(address: str, head: str, devices: int, ahead: int) -> tuple[str, ...]:
    """`ray start` arguments of a worker; `ahead` as CPUs, since Ray starts one Python worker ahead for each."""
    return (f"--address={head}", f"--num-gpus={devices}", f"--num-cpus={ahead}", *_common(address))


def _common(address: str) -> tuple[str, ...]:
    return (
        f"--node-ip-address={address}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        "--block",
    )


class RayNode:
    """A running `ray start --block`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._started = asyncio.Event()

    def start(self) -> None:
        """Lets it go: it has only imported Ray so far."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"start\n")

    async def wait_started(self) -> None:
        """Returns when all of the node's processes run and it is registered with the head."""
        await self._started.wait()

    async def wait_ended(self) -> int:
        """The exit status, once it has ended."""
        return await self._process.wait()

    async def _copy_output(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
            if _STARTED in line:
                self._started.set()

    async def _stop(self) -> None:
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def ray_node(arguments: tuple[str, ...]) -> AsyncIterator[RayNode]:
    """Runs `ray start`, once its `start` is called, until the end of the block; then all its processes are gone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-u",
        "-c",
        _RAY_START,
        "start",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    node = RayNode(process)
    output = asyncio.create_task(node._copy_output())
    try:
        yield node
    finally:
        await node._stop()
        output.cancel()


async def answers(address: str, port: int, timeout_s: float = 2.0) -> bool:
    """Whether a gRPC server answers there.

    A TCP connect proves nothing: through an overlay the near end accepts and only then tries the far one.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(_HTTP2_PREFACE)
                header = await reader.readexactly(_FRAME_HEADER_BYTES)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
    return header[3] == _SETTINGS


async def wait_until_answers(address: str, port: int, timeout_s: float, pause_s: float = 0.1) -> None:
    """Returns when a gRPC server answers there; raises TimeoutError after `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while not await answers(address, port):
            await asyncio.sleep(pause_s)
