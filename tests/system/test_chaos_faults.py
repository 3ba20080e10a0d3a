"""The faults of the chaos benchmark really happen, and can be undone: on machines whose host and rank are stand-ins."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest

from benchmarks.chaos_faults import give_disk, inject, ranks
from benchmarks.chaos_schedule import Kind
from tests.system.lan import Lan
from tests.system.leftovers import Snapshot
from tests.system.machine import Machine
from tests.system.process import Process
from tests.system.swarm import Host

# As little as a host and its rank have in common with these: the one starts the other, and both compute, allocate and write.
_WORK = """
import errno, sys, time
n = 0
while True:
    n += 1
    block = bytearray(4 << 20)
    for i in range(0, len(block), 4096):
        block[i] = 1
    try:
        with open("file", "ab") as file:
            file.write(b"x" * 4096)
    except OSError as error:
        print(sys.argv[1], errno.errorcode[error.errno], flush=True)
    print(sys.argv[1], n, flush=True)
    time.sleep(0.01)
"""
_HOST = f"""
import subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", {_WORK!r}, "rank", "RayWorker" + "Proc"])
sys.argv[1:] = ["host"]
exec({_WORK!r})
"""


@pytest.fixture
def host(lan: Lan) -> Iterator[Host]:
    machine = lan.add("alice")
    give_disk(machine)
    lan.before |= Snapshot.take([machine])
    process = machine.start([sys.executable, "-c", _HOST])
    process.wait_for("rank 3", 10)
    yield Host(machine, process)
    process.end_now()


def goes_on(process: Process, who: str, within_s: float = 1.0) -> int:
    """How often it says something in that time."""
    before = process.stdout.count(f"{who} ")
    time.sleep(within_s)
    return process.stdout.count(f"{who} ") - before


def reaches(machine: Machine, other: Machine) -> bool:
    refused = "connection refused"
    program = f"""
import socket
try:
    socket.create_connection(("{other.address}", 9), timeout=1)
except ConnectionRefusedError:
    print("{refused}")
except OSError:
    pass
"""
    return refused in machine.run([sys.executable, "-c", program]).check().stdout


def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_faults_happen_and_are_undone(lan: Lan, host: Host) -> None:
    process = host.process
    other = lan.add("bob")

    undo = inject("host frozen", host, lan, [other])
    time.sleep(0.1)
    assert goes_on(process, "host") == goes_on(process, "rank") == 0
    undo()
    assert goes_on(process, "host") > 3
    assert goes_on(process, "rank") > 3

    undo = inject("rank frozen", host, lan, [other])
    time.sleep(0.1)
    assert goes_on(process, "rank") == 0
    assert goes_on(process, "host") > 3
    undo()
    assert goes_on(process, "rank") > 3

    kinds: tuple[Kind, ...] = ("cable pulled", "packets dropped")
    for kind in kinds:
        assert reaches(other, host.machine)
        undo = inject(kind, host, lan, [other])
        assert not reaches(other, host.machine)
        undo()
        until(lambda: reaches(other, host.machine))

    undo = inject("disk full", host, lan, [other])
    process.wait_for("host ENOSPC", 5)
    undo()
    time.sleep(0.2)
    full = process.stdout.count("ENOSPC")
    assert goes_on(process, "host") > 3
    assert process.stdout.count("ENOSPC") == full

    usual = goes_on(process, "host", 2.0)
    undo = inject("slow to a crawl", host, lan, [other])
    time.sleep(1.0)
    assert goes_on(process, "host", 2.0) < usual / 3
    undo()
    time.sleep(0.2)
    assert goes_on(process, "host", 2.0) > usual / 3

    undo = inject("out of memory", host, lan, [other])
    until(lambda: not ranks(host))
    undo()
    assert goes_on(process, "host") > 3
    with pytest.raises(RuntimeError, match="computes nothing"):
        inject("rank killed", host, lan, [other])


@pytest.mark.parametrize(
    ("kind", "ends_host"),
    [("host killed", True), ("host's Ctrl-C", True), ("host's owner", True), ("rank killed", False)],
)
def test_hosts_and_ranks_end(lan: Lan, host: Host, kind: Kind, ends_host: bool) -> None:
    (rank,) = ranks(host)
    program = psutil.Process(rank)
    inject(kind, host, lan, [])()
    if not ends_host:
        until(lambda: rank not in ranks(host))
        assert goes_on(host.process, "host") > 3
    else:
        until(lambda: host.process.returncode is not None)
        # A real one would have died with its host.
        with suppress(psutil.NoSuchProcess):
            program.kill()
