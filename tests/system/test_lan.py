"""The harness itself: machines reach each other, links are cut, and what is left behind is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system.lan import Lan
from tests.system.leftovers import Snapshot, assert_nothing_left, difference
from tests.system.machine import Machine
from tests.system.namespaces import command
from tests.system.process import Process, descendants

ECHO = """
import socket
server = socket.create_server(("", 7000))
print("listening", flush=True)
while True:
    peer, _ = server.accept()
    while data := peer.recv(100):
        peer.sendall(data)
"""
CALL = """
import socket, sys
peer = socket.create_connection((sys.argv[1], 7000), timeout=1.5)
peer.sendall(b"hello")
print(peer.recv(100).decode(), peer.getsockname()[0])
"""


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-c", program, *arguments]


def call(caller: Machine, server: Machine) -> str:
    return caller.run(python(CALL, server.address), timeout_s=10).stdout.strip()


def echo_on(machine: Machine) -> Process:
    process = machine.start(python(ECHO))
    process.wait_for("listening", 10)
    return process


def test_machines_reach_each_other_and_nothing_else(lan: Lan) -> None:
    one, two = lan.add("one"), lan.add("two")
    echo_on(two)

    assert call(one, two) == f"hello {one.address}"
    assert one.run(["hostname"]).stdout == "one\n"
    assert one.run(["ip", "route", "get", "192.0.2.1"]).returncode != 0
    # Asked of the routing table, not by a packet: outside, that address may be somebody's.
    assert "10.77.0." not in command("ip", "address") + command("ip", "route")


def test_homes_processes_and_memory_are_separate(lan: Lan, tmp_path: Path) -> None:
    one, two = lan.add("one"), lan.add("two")
    (tmp_path / "model").write_text("weights")
    one.run(["sh", "-c", "echo secret > $HOME/key; echo x > /tmp/x; echo x > /dev/shm/x"]).check()

    assert two.run(["sh", "-c", "ls $HOME /tmp/x /dev/shm/x"]).returncode != 0
    assert two.run(["sh", "-c", "ls /proc | grep -c '^[0-9]'"]).stdout.strip() in ["2", "3", "4"]
    assert two.run(["cat", str(tmp_path / "model")]).check().stdout == "weights"
    one.run(["sh", "-c", "rm /tmp/x /dev/shm/x"]).check()


def test_a_cut_loses_packets_silently_until_it_is_healed(lan: Lan) -> None:
    one, two, three = lan.add("one"), lan.add("two"), lan.add("three")
    echo_on(two)

    lan.cut(one, two)
    failed = one.run(python(CALL, two.address), timeout_s=10)
    assert "timed out" in failed.stderr
    assert call(three, two).startswith("hello")

    lan.heal(one, two)
    assert call(one, two).startswith("hello")


def test_an_unplugged_machine_reaches_nobody_until_plugged(lan: Lan) -> None:
    one, two = lan.add("one"), lan.add("two")
    echo_on(two)

    lan.unplug(two)
    assert one.run(python(CALL, two.address), timeout_s=10).returncode != 0
    lan.plug(two)
    assert call(one, two).startswith("hello")


def test_power_off_ends_all_without_goodbye(lan: Lan) -> None:
    one, two = lan.add("one"), lan.add("two")
    echo = echo_on(two)
    client = one.start(
        python(
            'import socket, sys; s = socket.create_connection((sys.argv[1], 7000)); print("in", flush=True);'
            "s.settimeout(1); s.recv(1)",
            two.address,
        )
    )
    client.wait_for("in")

    lan.power_off(two)

    assert echo.wait(5).returncode != 0
    assert "timed out" in client.wait(5).stderr
    assert Snapshot.take([two]) == Snapshot()


def test_a_limited_uplink_is_slow(lan: Lan) -> None:
    one, two = lan.add("one"), lan.add("two")
    sink = two.start(
        python(
            'import socket; s = socket.create_server(("", 7000)); print("up", flush=True); p, _ = s.accept()\n'
            "while p.recv(1 << 16): pass"
        )
    )
    sink.wait_for("up")
    lan.limit(one, 8)
    send = "import socket, sys; s = socket.create_connection((sys.argv[1], 7000)); s.sendall(bytes(1 << 20)); s.close()"
    begun = time.monotonic()
    one.run(python(send, two.address)).check()
    sink.wait(10)
    assert time.monotonic() - begun > 0.8


def test_a_long_line_takes_its_time_and_carries_much(lan: Lan) -> None:
    one, two = lan.add("one"), lan.add("two")
    sink = two.start(
        python(
            'import socket; s = socket.create_server(("", 7000)); print("up", flush=True)\n'
            "for _ in range(2):\n"
            "    p, _ = s.accept()\n"
            "    while p.recv(1 << 16): pass\n"
            '    p.sendall(b"all of it")'
        )
    )
    sink.wait_for("up")
    send = (
        "import socket, sys, time; begun = time.monotonic(); s = socket.create_connection((sys.argv[1], 7000))\n"
        "s.sendall(bytes(4 << 20)); s.shutdown(socket.SHUT_WR); s.recv(100); print(time.monotonic() - begun)"
    )
    short_s = float(one.run(python(send, two.address)).check().stdout)
    lan.delay(one, 0.1)
    long_s = float(one.run(python(send, two.address)).check().stdout)
    sink.wait(10)
    # To connect takes a round trip, and so does the answer.
    assert short_s + 0.4 <= long_s < short_s + 3


def test_run_gives_output_input_and_status(lan: Lan) -> None:
    one = lan.add("one")
    done = one.run(["sh", "-c", "cat; echo error >&2; exit 3"], input="prompt")
    assert (done.stdout, done.stderr, done.returncode) == ("prompt", "error\n", 3)
    with pytest.raises(TimeoutError, match="started"):
        one.run(["sh", "-c", "echo started; sleep 60"], timeout_s=1)
    with pytest.raises(AssertionError, match=r"ended with 4[\s\S]*too soon"):
        one.start(["sh", "-c", "echo too soon; exit 4"]).wait_for("never")


def test_signals_reach_the_command(lan: Lan) -> None:
    one = lan.add("one")
    loop = "import time\ntry: print('up', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: print('drained')"
    with one.start(python(loop)) as process:
        process.wait_for("up")
        process.interrupt()
        done = process.wait(5)
        assert (done.returncode, done.stdout) == (0, "up\ndrained\n")
    with one.start(["sleep", "60"]) as process:
        process.kill()
        assert process.wait(5).returncode == -signal.SIGKILL
    stubborn = one.start(["sh", "-c", "trap '' INT; echo up; while true; do sleep 0.1; done"], grace_s=1)
    stubborn.wait_for("up")
    with pytest.raises(AssertionError, match="did not end after Ctrl-C"):
        stubborn.stop()


def test_a_frozen_tree_is_silent_and_goes_on(lan: Lan) -> None:
    one = lan.add("one")
    ticks = "unshare --pid --fork sh -c 'while true; do echo tick; sleep 0.05; done'"
    process = one.start(["sh", "-c", f"{ticks}; true"], grace_s=5)
    process.wait_for("tick")
    process.freeze()
    time.sleep(0.3)
    before = len(process.stdout)
    time.sleep(0.5)
    assert len(process.stdout) == before
    process.thaw()
    time.sleep(0.5)
    assert len(process.stdout) > before


LEAKS = {
    "process": "setsid sleep 321 >/dev/null 2>&1 &",
    "daemon": "(unshare --net --user setsid env -i /bin/sleep 321 >/dev/null 2>&1 &)",
    "temporary file": "mkdir /tmp/ray && touch /tmp/ray/session",
    "shared memory": "touch /dev/shm/psm_1",
    "System V shm": "ipcmk --shmem 4096",
    "runtime file": "touch $XDG_RUNTIME_DIR/session",
    "file": "touch $HOME/model.safetensors.incomplete",
    "mount": "mount -t tmpfs tmpfs /mnt",
    "network interface": "ip tuntap add dev edge0 mode tun",
    "socket": "setsid nohup python3 -c 'import socket,time; s=socket.create_server((\"\",7001)); time.sleep(321)' "
    ">/dev/null 2>&1 & sleep 0.5",
}


@pytest.mark.parametrize("kind", LEAKS)
def test_what_is_left_behind_is_noticed(kind: str) -> None:
    with Lan() as lan:
        one = lan.add("one")
        one.run(["sh", "-c", LEAKS[kind]]).check()
        left = difference(lan.before, Snapshot.take([one]))
        assert kind.replace("daemon", "process") in {trace.kind for trace in left}
        with pytest.raises(AssertionError, match="left behind"):
            assert_nothing_left(lan.before, [one], patience_s=0.2)


def test_what_goes_in_time_is_not_left_behind(lan: Lan) -> None:
    lan.add("one").run(["sh", "-c", "(sleep 1; rm /tmp/x) >/dev/null 2>&1 & touch /tmp/x"]).check()


def test_a_network_removes_itself_even_after_a_failure() -> None:
    before = descendants(os.getpid())
    roots: list[Path] = []

    def fail() -> None:
        with Lan() as lan:
            one = lan.add("one")
            roots.append(one.home.parent.parent)
            one.start(["sh", "-c", "setsid setsid sleep 321 & sleep 321"])
            one.run(["sh", "-c", "touch /tmp/x; mount -t tmpfs tmpfs /mnt"]).check()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not roots[0].exists()
    assert descendants(os.getpid()) <= before


def test_a_killed_test_run_leaves_no_machine() -> None:
    program = "from tests.system.lan import Lan\nimport time\nlan = Lan().__enter__()\none = lan.add('one')\n"
    program += "one.start(['sleep', '321'])\nprint(one.namespaces.init, one.home, flush=True)\ntime.sleep(60)"
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    init, home = run.stdout.readline().split()
    run.kill()
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{init}").exists():
        assert time.monotonic() < deadline, "the machine lives on"
        time.sleep(0.05)
    subprocess.run(["rm", "-r", str(Path(home).parent.parent)], check=True)
