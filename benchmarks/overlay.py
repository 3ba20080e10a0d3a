"""Overlay against a plain TCP connection over the same veth between the same two network namespaces. Needs root.

    python -m benchmarks.overlay [REPEATS]

Ways: "direct" (the overlay's own connections between the two), "streams" (nobody can dial the other's overlay, so that all
goes over libp2p), "relayed" (nobody can dial the server's node either: a relay, beside the server, carries its
libp2p connection). Prints a table and, as its last line, JSON. Plain and overlay take turns, so that what else the
machine does hits both alike; every figure is a median.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import overlay_traffic
from edgellm.overlay.address import member_addresses
from edgellm.overlay.identity import make_member_identity
from edgellm.p2p.identity import Identity

Way = Literal["direct", "streams", "relayed"]
REPEATS = 5
# Each several seconds long.
THROUGHPUT_MIB: dict[Way, int] = {"direct": 2048, "streams": 128, "relayed": 48}
PORT, NODE_PORT, RELAY_PORT = 7400, 7401, 7402
_RELAY_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Figures:
    """Medians of one side."""

    sent_mb_s: float
    rtt_ms: float
    connect_ms: float


@dataclass(frozen=True)
class OverlayResult:
    """Both sides; `ratio` is overlay throughput over plain, `added_rtt_ms` overlay round trip less plain."""

    plain: Figures
    overlay: Figures
    ratio: float
    added_rtt_ms: float
    repeats: int


def measure_overlay(repeats: int = REPEATS, way: Way = "direct") -> OverlayResult:
    """Measure with `repeats` turns of each side."""
    plain, overlay = [], []
    with contextlib.ExitStack() as stack:
        names, hosts = stack.enter_context(_two_namespaces())
        relay = _start_relay(stack, names[0], hosts[0]) if way == "relayed" else ""
        members = _start_members(stack, names, hosts, way, relay)
        _ask(members[0], "serve")
        server = _start(stack, names[0], [sys.executable, overlay_traffic.__file__, "serve"])
        _expect(server, "serving")
        overlay_address = member_addresses(7, 2)[0]
        for _ in range(repeats):
            blocks = THROUGHPUT_MIB["direct"]
            command = [sys.executable, overlay_traffic.__file__, "measure", hosts[0], str(blocks)]
            with contextlib.ExitStack() as turn:
                plain.append(_expect(_start(turn, names[1], command), "measured"))
            overlay.append(_ask(members[1], f"measure {overlay_address} {THROUGHPUT_MIB[way]}"))
    plain_figures, overlay_figures = _medians(plain), _medians(overlay)
    return OverlayResult(
        plain=plain_figures,
        overlay=overlay_figures,
        ratio=overlay_figures.sent_mb_s / plain_figures.sent_mb_s,
        added_rtt_ms=overlay_figures.rtt_ms - plain_figures.rtt_ms,
        repeats=repeats,
    )


@contextmanager
def _two_namespaces() -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Two network namespaces joined by a veth pair: their names and addresses."""
    names = (f"edgebench-{os.getpid()}-a", f"edgebench-{os.getpid()}-b")
    hosts = ("192.168.77.1", "192.168.77.2")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "v0", "netns", names[0], "type", "veth", "peer", "name", "v0", "netns", names[1])
        for name, host in zip(names, hosts, strict=True):
            _ip("-n", name, "addr", "add", f"{host}/24", "dev", "v0")
            for link in ("lo", "v0"):
                _ip("-n", name, "link", "set", link, "up")
        yield names, hosts
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)


def _start_members(
    stack: contextlib.ExitStack, names: tuple[str, str], hosts: tuple[str, str], way: Way, relay: str
) -> list[subprocess.Popen[str]]:
    identities = [make_member_identity() for _ in names]
    addresses = member_addresses(7, 2)
    seeds = [secrets.token_bytes(32) for _ in names]
    # Who is reached through a relay listens nowhere.
    listen = [
        [] if relay and not index else [f"/ip4/{host}/tcp/{NODE_PORT}"] for index, host in enumerate(hosts)
    ]
    plan = [
        {
            "address": address,
            "certificate": base64.b64encode(identity.certificate_der).decode(),
            "endpoints": [(host, PORT)] if way == "direct" else [],
            "peer": Identity.from_seed(seed).peer,
            "addresses": listens or [f"{relay}/p2p-circuit"],
        }
        for address, identity, host, seed, listens in zip(
            addresses, identities, hosts, seeds, listen, strict=True
        )
    ]
    members = []
    for index, name in enumerate(names):
        process = _start(stack, name, [sys.executable, "-m", "benchmarks.overlay_member"])
        settings: dict[str, object] = {
            "own": addresses[index],
            "key": identities[index].private_key_pem.decode(),
            "host": hosts[index],
            "port": PORT,
            "members": plan,
        }
        if way != "direct":
            settings["node"] = {
                "seed": seeds[index].hex(),
                "listen": listen[index],
                "relays": [] if listen[index] else [relay],
            }
        _say(process, json.dumps(settings))
        members.append(process)
    for process in members:
        _expect(process, "ready")
    return members


def _start_relay(stack: contextlib.ExitStack, namespace: str, host: str) -> str:
    """The multiaddr of a relay there."""
    home = stack.enter_context(tempfile.TemporaryDirectory())
    command = [sys.executable, "-m", "edgellm", "bootstrap", "--relay"]
    listen = ["--listen", f"/ip4/{host}/tcp/{RELAY_PORT}"]
    log = stack.enter_context((Path(home) / "log").open("w"))
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, *command, *listen],
        env=os.environ | {"EDGELLM_HOME": home},
        stdin=subprocess.DEVNULL,
        stderr=log,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    deadline = time.monotonic() + _RELAY_TIMEOUT_S
    while not (
        found := re.search(r"--bootstrap (\S+)", (text := Path(log.name).read_text()).replace("\n", ""))
    ):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the relay did not start: {text}")
        time.sleep(0.1)
    return found[1]


def _start(stack: contextlib.ExitStack, namespace: str, command: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def _ask(member: subprocess.Popen[str], line: str) -> dict[str, Any]:
    _say(member, line)
    return _expect(member, "serving" if line == "serve" else "measured")


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _expect(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    event: dict[str, Any] = json.loads(line) if line else {}
    if event.get("event") != name:
        raise RuntimeError(f"expected {name}, got {line!r} from {process.args!r}")
    return event


def _medians(measured: list[dict[str, Any]]) -> Figures:
    return Figures(
        **{
            name: statistics.median(one[name] for one in measured)
            for name in ("sent_mb_s", "rtt_ms", "connect_ms")
        }
    )


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def main() -> None:
    """Print what `measure_overlay` finds, for each way."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else REPEATS
    ways: tuple[Way, ...] = ("direct", "streams", "relayed")
    results = {way: measure_overlay(repeats, way) for way in ways}
    print(f"{'':10}{'MB/s':>10}{'RTT ms':>10}{'connect ms':>12}")
    for way, result in results.items():
        for name, side in (("plain", result.plain), (way, result.overlay)):
            print(f"{name:10}{side.sent_mb_s:10.0f}{side.rtt_ms:10.3f}{side.connect_ms:12.2f}")
        print(f"{'':10}ratio {result.ratio:.2f}, added round trip {result.added_rtt_ms:.3f} ms")
    print(json.dumps({way: asdict(result) for way, result in results.items()}))


if __name__ == "__main__":
    main()
