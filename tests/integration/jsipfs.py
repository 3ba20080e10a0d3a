"""A js-ipfs daemon on loopback, offline: an IPFS implementation that is not ours, behind the RPC of Kubo."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.nodejs import node_command

_START_S = 90.0
_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class JsIpfs:
    process: subprocess.Popen[bytes]
    address: str
    """Of its RPC."""


@contextmanager
def jsipfs_daemon(repository: Path) -> Iterator[JsIpfs]:
    """Skips the test where it is not installed."""
    ipfs = node_command("integration/ipfs/jsipfs", "node_modules/ipfs/src/cli.js")
    environment = {**os.environ, "IPFS_PATH": str(repository), "IPFS_TELEMETRY": "0"}
    with (repository.parent / "jsipfs.log").open("wb") as log:
        # The profile "test" has no bootstrap peers, no mDNS, and loopback alone.
        init = [*ipfs, "init", "--profile", "test", "--algorithm", "ed25519", "--empty-repo"]
        subprocess.run(init, env=environment, stdout=log, stderr=log, check=True, timeout=_START_S)
        config = json.loads((repository / "config").read_text())
        config["Addresses"] |= {
            "API": "/ip4/127.0.0.1/tcp/0",
            "Gateway": "/ip4/127.0.0.1/tcp/0",
            "RPC": "/ip4/127.0.0.1/tcp/0",
            "Swarm": ["/ip4/127.0.0.1/tcp/0"],
        }
        (repository / "config").write_text(json.dumps(config))
        # With preload, it would tell public nodes of every block.
        daemon = [*ipfs, "daemon", "--enable-preload=false"]
        process = subprocess.Popen(daemon, env=environment, stdout=log, stderr=log)
    try:
        yield JsIpfs(process, _address(repository, process))
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(repository: Path, process: subprocess.Popen[bytes]) -> str:
    given_up = time.monotonic() + _START_S
    while time.monotonic() < given_up and process.poll() is None:
        file = repository / "api"
        # It is written once the RPC listens.
        if file.exists() and (address := file.read_text().strip()):
            return address.removesuffix("/http")
        time.sleep(0.1)
    raise AssertionError((repository.parent / "jsipfs.log").read_text()[-3000:])
