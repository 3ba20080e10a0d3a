"""Hosts that are started from the console: real child processes that follow a script, and what their words mean."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from edgellm.console import local_hosts, views
from edgellm.console.host_lines import command_of, ended, noted
from edgellm.console.local_hosts import LocalHosts, open_local_hosts
from edgellm.console.membership import Place
from edgellm.console.sources import Busy, NotKnown
from edgellm.errors import NetworkError, UsageError
from edgellm.hosting.control import HostStatus, Order, Pause, Resume, control_socket

ADDRESS = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWalice"
READY = f"join through it: --bootstrap {ADDRESS}"
PLACE = Place(("/ip4/127.0.0.1/tcp/1/p2p/x",), False)
WANTED = views.NewHost(model="tiny", memory_bytes=1 << 30, name="alice")
HOST = views.Host(id="a", name="alice", model="tiny", memory_bytes=1, state="starting", started_at=0.0)

LENDS = f"""
import os, signal, sys, time
def end(*_): print("draining: no new leases", file=sys.stderr, flush=True); sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("reading tiny\\n{READY}", file=sys.stderr, flush=True)
print("home", os.environ["EDGELLM_HOME"], os.environ.get("EDGELLM_CONSOLE_TOKEN"), file=sys.stderr, flush=True)
time.sleep(600)
"""
FAILS = """
import sys
print("error: there is no model in tiny\\ntry:   give another one", file=sys.stderr)
sys.exit(1)
"""
STUBBORN = LENDS.replace("sys.exit(0)", "None")


@asynccontextmanager
async def hosts(homes: Path, program: str) -> AsyncIterator[LocalHosts]:
    async def place() -> Place:
        return PLACE

    command = (sys.executable, "-c", program)
    async with open_local_hosts(homes, place, isolation="none", program=command) as opened:
        yield opened


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(15):
        while not condition():
            await trio.sleep(0.02)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


async def test_a_host_from_its_start_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_CONSOLE_TOKEN", "not for children")
    async with hosts(tmp_path, LENDS) as it:
        started = await it.start(WANTED)
        assert (started.state, started.name, started.memory_bytes) == ("starting", "alice", 1 << 30)
        await until(lambda: it.one(started.id).state == "ready")
        assert (it.one(started.id).address, it.one(started.id).peer) == (ADDRESS, "12D3KooWalice")
        assert it.of_peer("12D3KooWalice") == started.id
        await until(lambda: len(it.log(started.id)) == 3)
        assert it.log(started.id)[2] == f"home {tmp_path / '1'} None"
        await it.stop(started.id)
        assert it.all() == ()
        assert children() == []
        with pytest.raises(NotKnown):
            it.one(started.id)


async def test_a_host_is_paused_and_resumed_by_its_socket(tmp_path: Path) -> None:
    heard: list[Order] = []

    def obey(order: Order) -> HostStatus:
        heard.append(order)
        return HostStatus("alice", "", 1, "paused", (), (), 1, 0, 0)

    async with hosts(tmp_path, LENDS) as it:
        started = await it.start(WANTED)
        await until(lambda: it.one(started.id).state == "ready")
        with pytest.raises(NetworkError, match="does not answer"):
            await it.pause(started.id)
        runtime = tmp_path / "1" / "run"
        runtime.mkdir()
        async with control_socket(runtime, obey):
            assert (await it.pause(started.id)).state == "paused"
            assert it.of_peer("12D3KooWalice") == started.id
            assert (await it.resume(started.id)).state == "ready"
        assert heard == [Pause(), Resume()]


async def test_hosts_end_with_the_console_and_not_before(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with hosts(tmp_path, LENDS) as it:
            for _ in range(2):
                await it.start(WANTED)
            await until(lambda: [host.state for host in it.all()] == ["ready"] * 2)
            # Each has a home of its own.
            assert {line for host in it.all() for line in it.log(host.id) if line.startswith("home")} == {
                f"home {tmp_path / number} None" for number in ("1", "2")
            }
            scope.cancel()
            await trio.sleep_forever()
    assert children() == []


async def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_hosts, "GRACE_S", 0.1)
    monkeypatch.setattr(local_hosts, "END_S", 0.2)
    async with hosts(tmp_path, STUBBORN) as it:
        started = await it.start(WANTED)
        await until(lambda: it.one(started.id).state == "ready")
        with trio.fail_after(5):
            await it.stop(started.id)
    assert children() == []


async def test_hurrying_kills_those_that_are_being_ended(tmp_path: Path) -> None:
    async with hosts(tmp_path, STUBBORN) as it:
        started = await it.start(WANTED)
        await until(lambda: it.one(started.id).state == "ready")
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(it.stop, started.id)
                await until(lambda: it.one(started.id).state == "stopping")
                it.hurry()
    assert children() == []


async def test_one_that_fails_says_why_until_it_is_taken_away(tmp_path: Path) -> None:
    async with hosts(tmp_path, FAILS) as it:
        started = await it.start(WANTED)
        await until(lambda: it.one(started.id).state == "ended")
        failed = it.one(started.id)
        assert failed.status == 1
        assert failed.failure == views.Problem(
            message="there is no model in tiny", remedy="give another one", type="host"
        )
        assert it.of_peer("") is None
        await it.stop(started.id)
        assert it.all() == ()


async def test_a_home_is_for_one_host_at_a_time(tmp_path: Path) -> None:
    async with hosts(tmp_path, LENDS) as one, hosts(tmp_path, LENDS) as other:
        first, second = await one.start(WANTED), await other.start(WANTED)
        await until(lambda: len(one.log(first.id)) == 3 and len(other.log(second.id)) == 3)
        assert one.log(first.id)[2] != other.log(second.id)[2]
        await one.stop(first.id)
        third = await other.start(WANTED)
        await until(lambda: len(other.log(third.id)) == 3)
        assert other.log(third.id)[2] == f"home {tmp_path / '1'} None"


async def test_what_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosts(tmp_path, LENDS) as it:
        with pytest.raises(UsageError, match="there is no directory"):
            await it.start(WANTED.model_copy(update={"model": "./nowhere"}))
        monkeypatch.setattr(local_hosts, "MAX_HOSTS", 0)
        with pytest.raises(Busy):
            await it.start(WANTED)
    assert children() == []


def test_a_console_that_is_killed_leaves_no_host() -> None:
    """The kernel tells the host."""
    program = (
        "import os, subprocess, sys, time\n"
        "argv = [sys.executable, '-m', 'edgellm.console.tethered', str(os.getpid()), sys.executable, '-c', "
        "'import time; time.sleep(600)']\n"
        "print(subprocess.Popen(argv).pid, flush=True); time.sleep(600)"
    )
    console = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert console.stdout is not None
    host = psutil.Process(int(console.stdout.readline()))
    deadline = time.monotonic() + 15
    while "-c" not in host.cmdline() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(console.pid, signal.SIGKILL)
    console.wait()
    gone, _ = psutil.wait_procs([host], timeout=10)
    assert gone == [host]


def test_what_a_host_says() -> None:
    reading = noted(HOST, "reading tiny")
    assert (reading.state, reading.detail) == ("starting", "reading tiny")
    ready = noted(reading, READY)
    assert (ready.state, ready.address) == ("ready", ADDRESS)
    assert noted(ready, "anything else") == ready
    assert noted(ready, "draining: no new leases").state == "stopping"


def test_how_a_host_ended() -> None:
    assert ended(HOST.model_copy(update={"state": "stopping"}), -15).failure is None
    assert ended(HOST, 0).failure is None
    killed = ended(noted(HOST, READY), -9)
    assert killed.failure is not None
    assert killed.failure.message == "alice was killed by signal 9"
    died = ended(noted(HOST, "measuring devices"), 1)
    assert died.failure is not None
    assert died.failure.message == "alice ended with status 1: measuring devices"


def test_how_a_host_is_started() -> None:
    wanted = views.NewHost(model="/m", memory_bytes=5, devices="0,2", threads=3)
    assert command_of(wanted, "bob", Place(("/a", "/b"), True), "bwrap") == [
        "--model=/m",
        "--name=bob",
        "--memory=5",
        "--listen=/ip4/0.0.0.0/tcp/0",
        "--grace=5",
        "--isolation=bwrap",
        "--swarm=open",
        "--allow-anyone",
        "--bootstrap=/a",
        "--bootstrap=/b",
        "--mdns",
        "--devices=0,2",
        "--threads=3",
    ]
