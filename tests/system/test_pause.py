"""An owner needs the machine: what is lent is free at once, the answer goes on elsewhere, and the host lends again later."""

from __future__ import annotations

import json
import time

import pytest

from tests.system.lan import Lan
from tests.system.leftovers import Snapshot
from tests.system.machine import Machine
from tests.system.swarm import ASK_TIMEOUT_S, Swarm

FREED_S = 10.0


@pytest.fixture(scope="module")
def swarm(module_lan: Lan) -> Swarm:
    return Swarm(module_lan)


def engines(machine: Machine) -> list[str]:
    return [
        trace.detail
        for trace in Snapshot.take([machine]).traces
        if trace.kind == "process" and ("bwrap" in trace.detail or "edgellm_vllm" in trace.detail)
    ]


def test_the_owner_needs_the_machine(swarm: Swarm) -> None:
    hosts = {host.machine.name: host for host in swarm.start_hosts("alice", "bob")}
    assert set(swarm.peers()) == {"alice", "bob"}
    argv = swarm.ask("The with statement is used", "--raw", "--max-tokens", "1900")
    asking = swarm.requester.start(argv)
    asking.wait_for(r"^ready in", ASK_TIMEOUT_S, stream="stderr")
    asking.wait_for("defined", 30, stream="stdout")
    lending = next(host for host in hosts.values() if status(host.machine)["leases"])
    begun = time.monotonic()
    paused = lending.machine.run(["edgellm", "host", "pause", "--now"]).check()
    assert "is paused" in paused.stderr
    assert "nothing of this machine is lent" in paused.stderr
    assert time.monotonic() - begun < FREED_S
    assert engines(lending.machine) == []
    assert (status(lending.machine)["state"], status(lending.machine)["leases"]) == ("paused", [])
    # It is not offered, though others may still list it.
    offered = swarm.peers()
    assert lending.machine.name not in offered or offered[lending.machine.name]["draining"]
    done = asking.wait(ASK_TIMEOUT_S).check()
    assert len(done.stdout) > 1000
    lending.machine.run(["edgellm", "host", "resume"]).check()
    assert status(lending.machine)["state"] == "lending"
    deadline = time.monotonic() + FREED_S
    while swarm.peers().get(lending.machine.name, {}).get("free_leases") != 1:
        assert time.monotonic() < deadline, "it is not offered again"


def test_a_host_ends_at_its_time(swarm: Swarm) -> None:
    host = swarm.start_host(swarm.machine("dave"), "--until", "20s").wait_ready()
    assert 0 < swarm.peers()["dave"]["lends_until"] - time.time() <= 20
    done = host.process.wait(40)
    assert done.returncode == 0
    assert "draining: it lends for another" in done.stderr
    assert "stopped: nothing is lent any more" in done.stderr


def status(machine: Machine) -> dict[str, object]:
    (shown,) = json.loads(machine.run(["edgellm", "host", "status", "--json"]).check().stdout)
    return shown
