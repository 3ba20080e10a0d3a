"""Somebody dies, leaves or falls silent: the others notice within 5 s, say so in one line, and nothing is left.

Times are taken on a machine whose two cores also run three nodes and an engine: `SLACK_S` is for that.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.lan import Lan
from tests.system.leftovers import Snapshot
from tests.system.machine import REPOSITORY, Machine
from tests.system.process import Process
from tests.system.swarm import ASK_TIMEOUT_S, Host, Swarm, error_of

NOTICED_S = 5.0
SLACK_S = 3.0
HESITANT = (sys.executable, str(Path(__file__).with_name("hesitant_host.py")))

# What the requester shows when it is: waiting for a grant, starting engines, answering.
MOMENTS = {"reserving": r"s  here +lease", "bring-up": r"s  head +\S", "generation": r"^ready in"}


@pytest.fixture(scope="module")
def swarm(module_lan: Lan) -> Swarm:
    swarm = Swarm(module_lan)
    for name in ("alice", "bob"):
        swarm.machine(name)
    return swarm


@pytest.fixture
def hosts(swarm: Swarm, request: pytest.FixtureRequest) -> Iterator[dict[str, Host]]:
    """alice and bob lend; alice hesitates where the test is about reserving."""
    hesitates = "reserving" in request.node.name
    machines = {machine.name: machine for machine in swarm.lan.machines}
    hosts = {
        "alice": swarm.start_host(machines["alice"], program=HESITANT if hesitates else ("edgellm",)),
        "bob": swarm.start_host(machines["bob"]),
    }
    for host in hosts.values():
        host.wait_ready()
    yield hosts
    for host in hosts.values():
        if host.process.returncode != 0:
            # One that was killed could not tidy up; the next one does.
            if host.process.returncode is not None:
                host = swarm.start_host(host.machine).wait_ready()
            host.process.stop()


def ask_until(swarm: Swarm, moment: str) -> Process:
    """A long question to both hosts, at the moment that the test is about."""
    # One who waits for nobody: what is tested is that deaths are noticed.
    argv = swarm.ask(
        "The with statement is used", "--raw", "--pp", "2", "--max-tokens", "1900", "--patience", "0"
    )
    asking = swarm.requester.start(["env", "PYTHONPATH=" + str(REPOSITORY), *argv])
    asking.wait_for(MOMENTS[moment], ASK_TIMEOUT_S, stream="stderr")
    if moment == "generation":
        asking.wait_for("defined", 30, stream="stdout")
    return asking


def until(
    condition: Callable[[], bool], what: str, begun: float, within_s: float = NOTICED_S + SLACK_S
) -> None:
    while not condition():
        assert time.monotonic() - begun < within_s, f"after {within_s:g} s it is not so that {what}"
        time.sleep(0.05)


def engines(machine: Machine) -> list[str]:
    return [
        trace.detail
        for trace in Snapshot.take([machine]).traces
        if trace.kind == "process"
        and ("bwrap" in trace.detail or "edgellm_vllm" in trace.detail or "ray" in trace.detail)
    ]


def free(swarm: Swarm, watcher: Machine) -> dict[str, int]:
    return {name: peer["free_leases"] for name, peer in swarm.peers(watcher).items()}


def assert_free(swarm: Swarm, hosts: dict[str, Host], begun: float) -> None:
    """All that the hosts ran is gone, and they lend again, soon after `begun`."""
    for host in hosts.values():
        until(lambda host=host: not engines(host.machine), f"{host.name} runs no engine", begun)  # type: ignore[misc]
    watcher = swarm.meeting_point
    everybody = dict.fromkeys(hosts, 1)
    until(
        lambda: free(swarm, watcher) == everybody,
        f"{', '.join(hosts)} are free",
        begun,
        NOTICED_S + 2 * SLACK_S,
    )


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_host_dies(swarm: Swarm, hosts: dict[str, Host], moment: str) -> None:
    asking = ask_until(swarm, moment)
    hosts["alice"].process.kill()
    begun = time.monotonic()
    done = asking.wait(NOTICED_S + SLACK_S)

    error, remedy = error_of(done)
    expected = "host alice did not grant a lease: " if moment == "reserving" else "host alice "
    assert error.startswith(expected)
    assert "again" in remedy
    until(lambda: not engines(hosts["alice"].machine), "the dead host's cell is gone", begun)
    assert_free(swarm, {"bob": hosts["bob"]}, begun)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_requester_dies(swarm: Swarm, hosts: dict[str, Host], moment: str) -> None:
    asking = ask_until(swarm, moment)
    asking.kill()
    begun = time.monotonic()
    asking.wait()
    until(lambda: not engines(swarm.requester), "the dead requester's cell is gone", begun)
    assert_free(swarm, hosts, begun)
    # It could not remove its sockets; the next question does.
    assert swarm.requester.run(swarm.ask("hello", model="unheard-of")).returncode == 1


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_of_a_requester(swarm: Swarm, hosts: dict[str, Host], moment: str) -> None:
    asking = ask_until(swarm, moment)
    asking.interrupt()
    begun = time.monotonic()
    done = asking.wait(NOTICED_S + SLACK_S)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert_free(swarm, hosts, begun)


def test_ctrl_c_of_a_host_that_lends(swarm: Swarm, hosts: dict[str, Host]) -> None:
    asking = ask_until(swarm, "generation")
    alice = hosts["alice"].process
    alice.interrupt()
    begun = time.monotonic()
    error, remedy = error_of(asking.wait(NOTICED_S + SLACK_S))
    assert error.startswith("host alice ")
    assert "ended its lease: the host is shutting down" in error
    assert "again" in remedy
    assert alice.wait(NOTICED_S + SLACK_S).returncode == 0
    assert_free(swarm, {"bob": hosts["bob"]}, begun)


@pytest.mark.parametrize("whose", ["alice", "carol"])
def test_a_cable_is_unplugged(swarm: Swarm, hosts: dict[str, Host], whose: str) -> None:
    machine = next(machine for machine in swarm.lan.machines if machine.name == whose)
    asking = ask_until(swarm, "generation")
    swarm.lan.unplug(machine)
    begun = time.monotonic()
    try:
        error, _ = error_of(asking.wait(NOTICED_S + SLACK_S))
        assert "was lost" in error
        for host in hosts.values():
            until(lambda host=host: not engines(host.machine), f"{host.name} runs no engine", begun)  # type: ignore[misc]
    finally:
        swarm.lan.plug(machine)
    assert_free(swarm, hosts, time.monotonic())
