"""A requester whose head sends its own code to a host, as Ray lets it: what that code sees and reaches there.

Each attempt that must fail has a twin that must succeed, so that a task that never ran, or tried it the wrong way,
cannot pass for one that was fenced.
"""

from __future__ import annotations

import errno
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.lan import Lan
from tests.system.machine import REPOSITORY, Machine
from tests.system.process import Process
from tests.system.swarm import ASK_TIMEOUT_S, TINY, Swarm

HOSTILE = Path(__file__).with_name("hostile_requester.py")
LOOPBACK_PORT, LAN_PORT = 7001, 7002
SERVICE = """
import socket, sys, threading
def serve(address, port):
    server = socket.create_server((address, port))
    while True:
        peer, _ = server.accept()
        peer.sendall(b"hello")
        peer.close()
threading.Thread(target=serve, args=("127.0.0.1", 7001), daemon=True).start()
print("up", flush=True)
serve("0.0.0.0", 7002)
"""
CALL = """
import socket, sys
print(socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).recv(5).decode())
"""
COMMANDS = (
    "true",
    "which nft",
    "nft flush ruleset",
    "nft add table ip mine",
    "ip route add default dev lo",
    "ip link set edge0 down",
    "ip address add 10.77.0.3/24 dev edge0",
    "mount -t tmpfs none /tmp",
    "unshare --user true",
    "bwrap --ro-bind / / true",
)


def on_the_way(place: str) -> bool:
    shown = (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))
    return any(path.is_relative_to(place) for path in shown)


@pytest.fixture(scope="module")
def swarm(module_lan: Lan) -> Swarm:
    swarm = Swarm(module_lan)
    alice = swarm.machine("alice")
    alice.start([sys.executable, "-c", SERVICE]).wait_for("up")
    swarm.machine("eve")
    swarm.start_host(alice, "--max-leases", "2", memory="4GiB").wait_ready()
    return swarm


@pytest.fixture(scope="module")
def neighbour(swarm: Swarm) -> Iterator[Process]:
    """Somebody else's cluster, which alice is a member of as well."""
    with hostile_cluster(swarm, swarm.lan.machines[3], 1, {}) as process:
        theirs = told(process, "attack")
        assert theirs["node"] == "10.88.1.2"
        only(theirs["reached"], "10.88.1.1:6379")
        yield process


KINDS = ("files", "writes", "listed", "reach", "commands", "running", "opened", "linked")
# x86-64: mount, ptrace, unshare of a mount namespace, keyctl, bpf, io_uring_setup, perf_event_open; and getpid, which must go.
CALLS = {
    "mount": [165, 0, 0, 0, 0, 0],
    "ptrace": [101, 3, 1, 0, 0],
    "unshare": [272, 0x20000],
    "keyctl": [250, 9999],
    "bpf": [321, 999, 0, 0],
    "io_uring": [425, 0, 0],
    "perf": [298, 0, 0, -1, -1, 0],
    "getpid": [39],
}
ENDED = {
    "memory": r"out\s+of\s+memory\s+in\s+its\s+cell",
    "shm": r"out\s+of\s+memory\s+in\s+its\s+cell",
    # Whichever it has too much of first: each fork of a Ray worker holds pages of its own.
    "forks": r"(too\s+many\s+processes|out\s+of\s+memory)\s+in\s+its\s+cell",
}


def hostile_cluster(
    swarm: Swarm, machine: Machine, third: int, targets: dict[str, list[Any]], bomb: str = ""
) -> Process:
    """A cluster of the machine's at 10.88.THIRD.0/24, whose head attacks alice."""
    wanted: dict[str, Any] = {key: targets.get(key, []) for key in KINDS}
    wanted |= {"calls": CALLS, "bomb": bomb}
    argv = swarm.ask("hello", "--pp", "1")
    return machine.start(
        [sys.executable, str(HOSTILE), str(third), json.dumps(wanted), *argv[1:]],
        env={"PYTHONPATH": str(REPOSITORY)},
    )


def told(process: Process, event: str) -> dict[str, Any]:
    said = process.wait_for(rf"head +{event} (\{{.*\}})$", ASK_TIMEOUT_S, stream="stderr")
    content = json.loads(said[1])
    assert isinstance(content, dict)
    return content


def test_code_of_a_requester_stays_in_its_cell(swarm: Swarm, neighbour: Process) -> None:
    alice = swarm.lan.machines[2]
    identity = alice.home / ".local/state/edgellm/identity.key"
    assert alice.namespaces.inside(identity).exists()
    for where, port in (("127.0.0.1", LOOPBACK_PORT), (alice.address, LAN_PORT)):
        assert alice.run([sys.executable, "-c", CALL, where, str(port)]).stdout == "hello\n"

    reach = [["127.0.0.1", LOOPBACK_PORT], [alice.address, LAN_PORT]]
    reach += [[machine.address, 4001] for machine in swarm.lan.machines[:3]]
    reach += [[f"10.88.1.{member}", port] for member in (1, 2) for port in (6379, 4001, 22)]
    # And Ray's remote client, which this cluster's own head does not serve.
    reach += [["10.88.255.254", 6379], ["192.0.2.1", 53], ["10.88.2.1", 10001]]
    # A cloud's metadata service, which would give whoever asks the machine's keys.
    reach += [["169.254.169.254", 80]]
    targets = {
        "files": [
            "/model/config.json",
            "/proc/self/status",
            str(identity),
            "/etc/shadow",
            str(TINY / "config.json"),
        ],
        "writes": ["/tmp/own", "/model/config.json", "/etc/passwd", sys.prefix + "/own", "/usr/own"],
        "listed": [
            "/model",
            str(alice.home),
            str(alice.runtime),
            # Not those on the way to the Python environment, which the cell must show.
            *(place for place in ("/home", "/var/tmp", "/root") if not on_the_way(place)),
            str(REPOSITORY / "tests"),
        ],
        "reach": reach,
        "commands": list(COMMANDS),
        "opened": [
            "/dev/null",
            "/dev/kvm",
            "/dev/mem",
            "/dev/vsock",
            "/proc/1/root/etc/shadow",
            "/proc/sysrq-trigger",
        ],
        "linked": ["/tmp/link", "/run/edgellm/link", "/run/edgellm/overlay.sock"],
        "running": ["raylet", "edgellm host", "edgellm bootstrap", "overlay.carrier"],
    }
    with hostile_cluster(swarm, swarm.requester, 2, targets) as process:
        seen = told(process, "attack")
        assert swarm.peers(swarm.meeting_point)["alice"]["free_leases"] == 0, "both clusters are there"

    assert seen["node"] == "10.88.2.2"
    assert seen["ray_runs"] >= 1
    assert (seen["interfaces"], seen["unshare_user"]) == (["edge0", "lo"], 1)
    assert seen["environment"] == {"HOME": "/tmp", "EDGELLM_HOME": "", "XDG_STATE_HOME": ""}
    assert seen["seen_running"] == ["raylet"]
    assert (seen["filters"], seen["privileges"]) == (["2"], ["1" + "0" * 16])
    assert seen["calls"] == dict.fromkeys(CALLS, errno.EPERM) | {"getpid": 0, "io_uring": errno.ENOSYS}
    private = (str(alice.home), str(alice.runtime))
    assert not [name for name in seen["files_open"] if name.startswith(private)]
    only(seen["opened"], "/dev/null")
    only(seen["linked"], "/tmp/link")
    only(seen["files"], "/model/config.json", "/proc/self/status")
    only(seen["writes"], "/tmp/own")
    only(seen["listed"], "/model")
    only(seen["reached"], "10.88.2.1:6379")
    assert len(seen["reached"]) == len(reach) + 2
    assert set(seen["commands"]) == set(COMMANDS)
    succeeded = {words for words, outcome in seen["commands"].items() if outcome == "done: 0"}
    assert succeeded == {"true", "which nft"}


@pytest.mark.parametrize("bomb", ENDED)
def test_a_bomb_ends_its_own_cell(swarm: Swarm, neighbour: Process, bomb: str) -> None:
    """The host goes on, somebody else's cell on it too, and whoever sent the bomb is told what became of it."""
    alice = swarm.lan.machines[2]
    with hostile_cluster(swarm, swarm.requester, 2, {}, bomb) as process:
        assert told(process, "attack")["node"] == "10.88.2.2"
        process.wait_for(ENDED[bomb], 60.0, stream="stderr")
    assert neighbour.returncode is None
    assert alice.run([sys.executable, "-c", CALL, alice.address, str(LAN_PORT)]).stdout == "hello\n"
    deadline = time.monotonic() + 15
    while swarm.peers(swarm.meeting_point)["alice"]["free_leases"] != 1:
        assert time.monotonic() < deadline, "the cell of the bomb is gone, and its lease with it"


def only(outcomes: dict[str, str], *expected: str) -> None:
    """Of all attempts these succeeded, and the others failed."""
    assert {name for name, outcome in outcomes.items() if outcome.startswith("done: ")} == set(expected), (
        outcomes
    )
    assert all(re.match(r"done: |\w+Error: |TimeoutError", outcome) for outcome in outcomes.values()), (
        outcomes
    )
