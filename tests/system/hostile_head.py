"""A requester's head that attacks the hosts it has leased, instead of asking a model: runs inside the head's cell.

Started as `python -c` with the backend's arguments for a head, then the attack's targets as JSON. It submits one Ray task
to each worker and prints what each saw as events, which the requester shows.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import ray
from edgellm_vllm.ray_node import head_arguments, ray_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote(num_cpus=0)
def attack(targets: dict[str, Any]) -> dict[str, Any]:
    """Runs on a host. Everything it needs is inside, for it travels by value."""
    import ctypes
    import os
    import socket
    import subprocess
    from pathlib import Path

    def attempt(action: Any) -> str:
        try:
            return f"done: {action()}"[:200]
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"[:200]

    def reach(address: str, port: int) -> str:
        """The first byte of an answer: through an overlay, being connected proves nothing."""
        with socket.create_connection((address, port), timeout=2) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04\x00" + bytes(4))
            if not (received := connection.recv(1)):
                raise ConnectionResetError("closed without a word")
            return received.hex()

    def command(*words: str) -> int:
        return subprocess.run(words, capture_output=True, timeout=10).returncode

    def unshare() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        # CLONE_NEWUSER
        return 0 if libc.unshare(0x10000000) == 0 else ctypes.get_errno()

    def everything_running() -> list[str]:
        lines = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    lines.append(
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    )
                except OSError:
                    continue
        return lines

    def status(pid: str) -> dict[str, str]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    def system_call(number: int, *arguments: int) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        return 0 if libc.syscall(number, *arguments) >= 0 else ctypes.get_errno()

    running = everything_running()
    pids = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {
        "filters": sorted({status(pid)["Seccomp"] for pid in pids}),
        "privileges": sorted({status(pid)["NoNewPrivs"] + status(pid)["CapPrm"] for pid in pids}),
        "calls": {name: system_call(*words) for name, words in targets["calls"].items()},
        "opened": {
            path: attempt(lambda path=path: os.close(os.open(path, os.O_RDWR))) for path in targets["opened"]
        },
        "linked": {
            path: attempt(lambda path=path: Path(path).symlink_to("/etc")) for path in targets["linked"]
        },
        "files_open": sorted(
            {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
        ),
        "files": {path: attempt(lambda path=path: Path(path).read_bytes()[:20]) for path in targets["files"]},
        "writes": {path: attempt(lambda path=path: Path(path).write_text("x")) for path in targets["writes"]},
        "listed": {path: attempt(lambda path=path: list(Path(path).iterdir())) for path in targets["listed"]},
        "reached": {
            f"{address}:{port}": attempt(lambda address=address, port=port: reach(address, port))
            for address, port in targets["reach"]
        },
        "commands": {
            words: attempt(lambda words=words: command(*words.split())) for words in targets["commands"]
        },
        "unshare_user": unshare(),
        "ray_runs": sum("raylet" in line for line in running),
        "seen_running": [name for name in targets["running"] if any(name in line for line in running)],
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "environment": {
            name: os.environ.get(name, "") for name in ("HOME", "EDGELLM_HOME", "XDG_STATE_HOME")
        },
    }


@ray.remote(num_cpus=0)
def bomb(kind: str) -> None:
    """Takes of the host what it can get."""
    import os
    import time
    from pathlib import Path

    held = []
    while True:
        if kind == "memory":
            held.append(bytearray(b"x" * (32 << 20)))
        elif kind == "shm":
            Path(f"/dev/shm/{len(held)}").write_bytes(b"x" * (64 << 20))
            held.append(b"")
        else:
            try:
                os.fork()
            except OSError:
                time.sleep(0.05)


def event(name: str, **content: object) -> None:
    print(json.dumps({"event": "phase", "name": name, "detail": json.dumps(content)}), flush=True)


async def main() -> None:
    arguments = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:-1])
    targets = json.loads(sys.argv[-1])
    address, port = arguments["head"].rsplit(":", 1)
    subnet = address.rsplit(".", 1)[0]
    # Its own cluster: the head, which must answer, and an address that nobody has.
    targets["reach"] += [[address, int(port)], [f"{subnet}.200", 6379]]
    async with ray_node(head_arguments(address, int(port))) as node:
        node.start()
        await node.wait_started()
        await asyncio.to_thread(ray.init, address=f"{address}:{port}", log_to_driver=False)
        workers: list[Any] = []
        deadline = time.monotonic() + 60
        while not workers and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            workers = [
                entry for entry in ray.nodes() if entry["Alive"] and entry["NodeManagerAddress"] != address
            ]
        for worker in workers:
            there = NodeAffinitySchedulingStrategy(worker["NodeID"], soft=False)
            reference = attack.options(scheduling_strategy=there).remote(targets)
            seen = await asyncio.to_thread(ray.get, reference, timeout=90)
            event("attack", node=worker["NodeManagerAddress"], **seen)
            if targets["bomb"]:
                bomb.options(scheduling_strategy=there).remote(targets["bomb"])
        await asyncio.sleep(600)


asyncio.run(main())
