"""LMCache's server, one process beside a worker's ranks.

It is LMCache's server without its HTTP interface: that has no authentication and nothing that is needed here. It listens on the
member's own address, where the cluster's other members reach it, because vLLM's scheduler, on the head, asks all of them. Its
messages may hold pickles; members trust each other as far as Ray makes them anyway, and a cell keeps them from the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping

from edgellm_vllm.kv.settings import CHUNK_TOKENS, SERVER_PORT, KvSettings

_GREETING_BYTES = 10
_STOP_TIMEOUT_S = 3.0
_POLL_S = 0.1


def server_command(address: str, settings: KvSettings, device_kind: str) -> tuple[str, ...]:
    """argv of the server."""
    adapter = {
        "type": "plugin",
        "module_path": "edgellm_vllm.kv.adapter",
        "class_name": "NodeAdapter",
        # LMCache logs them; everything else is in the environment.
        "adapter_params": {},
    }
    gigabytes = settings.sharing.cache_bytes / (1 << 30)
    return (
        sys.executable,
        "-m",
        "lmcache.v1.multiprocess.server",
        f"--host={address}",
        f"--port={SERVER_PORT}",
        f"--chunk-size={CHUNK_TOKENS}",
        # The only one of LMCache's hashes that is the same in every process.
        "--hash-algorithm=blake3",
        f"--supported-transfer-mode={'engine_driven' if device_kind == 'cpu' else 'auto'}",
        # New for each server: a segment of another one's would be taken for this one's.
        f"--shm-name=edgellm_{secrets.token_hex(6)}",
        f"--l1-size-gb={gigabytes:.3f}",
        # Shared with the ranks, it cannot grow.
        "--no-l1-use-lazy",
        "--eviction-policy=LRU",
        "--l2-prefetch-policy=retain",
        "--disable-observability",
        f"--l2-adapter={json.dumps(adapter)}",
    )


def server_environment(settings: KvSettings, inherited: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: no telemetry, no threads that would take the ranks' cores."""
    return {
        **inherited,
        "LMCACHE_TRACK_USAGE": "false",
        "LMCACHE_DISABLE_BANNER": "1",
        "LMCACHE_LOG_LEVEL": inherited.get("LMCACHE_LOG_LEVEL", "WARNING"),
        "OMP_NUM_THREADS": "1",
    }


@contextlib.asynccontextmanager
async def kv_server(address: str, settings: KvSettings, device_kind: str) -> AsyncIterator[None]:
    """Runs the server until the end of the block. It is not waited for: the head asks for it (`sharing`)."""
    process = await asyncio.create_subprocess_exec(
        *server_command(address, settings, device_kind),
        env=server_environment(settings, os.environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
            except TimeoutError:
                process.kill()
                await process.wait()


def answers(address: str, timeout_s: float) -> bool:
    """Whether a server answers there within that time.

    A TCP connect proves nothing through an overlay, so the first bytes of ZeroMQ's greeting must come
    (https://rfc.zeromq.org/spec/23/: ten bytes, 0xFF first and 0x7F last). LMCache listens when all else of it is ready.
    """
    deadline = time.monotonic() + timeout_s
    while (left_s := deadline - time.monotonic()) > 0:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((address, SERVER_PORT), timeout=left_s) as connection,
        ):
            if _is_greeting(_read(connection, deadline)):
                return True
        time.sleep(min(_POLL_S, left_s))
    return False


def _read(connection: socket.socket, deadline: float) -> bytes:
    got = b""
    while len(got) < _GREETING_BYTES:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        part = connection.recv(_GREETING_BYTES - len(got))
        if not part:
            break
        got += part
    return got


def _is_greeting(got: bytes) -> bool:
    return len(got) == _GREETING_BYTES and got[0] == 0xFF and got[-1] == 0x7F
