"""A network of machines with addresses of their own on one switch, all of it on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tests.system.delay_line import DelayLine
from tests.system.leftovers import Snapshot, assert_nothing_left
from tests.system.machine import Machine
from tests.system.namespaces import Namespaces, command

_PREFIX_LENGTH = 24
_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL
_SO_RCVBUFFORCE = 33
_TAP_BYTES = 256 << 20
_PROGRAMS = ("ip", "nft", "tc", "unshare", "nsenter", "setsid")


class Lan:
    """A switch and the machines plugged into it, 10.77.0.1 and up. Leaving the context removes all of it.

    It is a network namespace of its own: several exist side by side, and the one of the tests stays as it is.
    """

    def __init__(self, visible: Iterable[Path] = ()) -> None:
        """`visible`: paths below /tmp that its machines shall see (they have a /tmp of their own)."""
        self.machines: list[Machine] = []
        self.before = Snapshot()
        """What was on each machine when it was new."""
        self._visible = tuple(visible)
        self._undo = ExitStack()

    def __enter__(self) -> Lan:
        if missing := missing_for_lan():
            raise RuntimeError(f"no network of machines can be made here: {missing}")
        with ExitStack() as undo:
            # Not below /tmp, which each machine has its own of; short, for paths of Unix sockets end at 107 bytes.
            self._root = Path(tempfile.mkdtemp(prefix="edgellm-", dir="/var/tmp"))
            undo.callback(shutil.rmtree, self._root)
            self._switch = Namespaces("switch")
            undo.callback(self._switch.close)
            self._switch.command("ip", "link", "add", "lan", "type", "bridge", "forward_delay", "0")
            self._switch.command("ip", "link", "set", "lan", "up")
            self._undo = undo.pop_all()
        _open.append(self)
        self._undo.callback(_open.remove, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def add(self, name: str) -> Machine:
        """A new machine with the next address, plugged in."""
        number = len(self.machines) + 1
        machine = Machine(name, f"10.77.0.{number}", self._root / name, self._visible)
        self._undo.callback(machine.namespaces.close)
        self.machines.append(machine)
        place = machine.namespaces
        command(
            *("ip", "link", "add", "name", "eth0", "netns", str(place.init), "type", "veth"),
            *("peer", "name", f"port{number}", "netns", str(self._switch.init)),
        )
        self._switch.command("ip", "link", "set", f"port{number}", "master", "lan", "up")
        place.command("ip", "address", "add", f"{machine.address}/{_PREFIX_LENGTH}", "dev", "eth0")
        place.command("ip", "link", "set", "eth0", "up")
        # Every packet passes here before anything else; `cut` fills the set, so that cutting is one atomic step.
        rules = ["table inet lan {", "set cut { type ipv4_addr; }"]
        for hook, field in (("input", "saddr"), ("output", "daddr")):
            rules.append(f"chain {hook} {{ type filter hook {hook} priority -300; ip {field} @cut drop; }}")
        place.command("nft", "\n".join([*rules, "}"]))
        self.before |= Snapshot.take([machine])
        return machine

    def cut(self, one: Machine, other: Machine) -> None:
        """From now on every packet between the two is lost, without a word to either."""
        for here, there in ((one, other), (other, one)):
            here.namespaces.command("nft", f"add element inet lan cut {{ {there.address} }}")

    def heal(self, one: Machine, other: Machine) -> None:
        """Packets between the two arrive again."""
        for here, there in ((one, other), (other, one)):
            here.namespaces.command("nft", f"delete element inet lan cut {{ {there.address} }}")

    def unplug(self, machine: Machine) -> None:
        """Pulls the machine's cable out of the switch: it keeps its address and loses its carrier."""
        self._set_port(machine, "down")

    def plug(self, machine: Machine) -> None:
        """Puts the cable back."""
        self._set_port(machine, "up")

    def power_off(self, machine: Machine) -> None:
        """All of the machine is gone at once, before any of its connections could say goodbye."""
        self.unplug(machine)
        machine.namespaces.close()

    def limit(self, machine: Machine, rate_mbit_s: float) -> None:
        """Limits what the machine sends, as a slow uplink does (token bucket filter, 50 ms of queue)."""
        bucket = ("rate", f"{rate_mbit_s}mbit", "burst", "64kb", "latency", "50ms")
        machine.namespaces.command("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *bucket)

    def delay(self, machine: Machine, one_way_s: float) -> None:
        """From now on each packet to and from the machine travels so much longer, as over a long line."""
        number = self.machines.index(machine) + 1
        near, far, port = f"near{number}", f"far{number}", f"port{number}"
        self._switch.command("ip", "link", "set", port, "nomaster")
        self._switch.command("ip", "link", "add", near, "type", "veth", "peer", "name", far)
        self._switch.command("ip", "link", "set", near, "master", "lan", "up")
        for end in (far, port):
            self._switch.command("ip", "link", "set", end, "up", "promisc", "on")
        with self._switch.network():
            line = DelayLine(far, port, one_way_s)
        self._undo.callback(line.close)

    def tap(self) -> socket.socket:
        """A socket that receives every frame that crosses the switch, once as it comes in and once as it goes out."""
        with self._switch.network():
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _TAP_BYTES)
        return tap

    def end_all(self) -> None:
        """Ends by Ctrl-C all that still runs of what was started, the last machine first. Raises AssertionError when
        something does not end, or leaves a trace on its machine.
        """
        for machine in reversed(self.machines):
            machine.stop_all()
        assert_nothing_left(self.before, self.machines)

    def _set_port(self, machine: Machine, state: str) -> None:
        port = f"port{self.machines.index(machine) + 1}"
        self._switch.command("ip", "link", "set", port, state)


_open: list[Lan] = []


def open_machines() -> list[Machine]:
    """All machines of all networks that exist now."""
    return [machine for lan in _open for machine in lan.machines]


def missing_for_lan() -> str:
    """What a `Lan` lacks here, in words; empty when nothing."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    return f"missing: {' '.join(missing)} (apt-get install iproute2 nftables util-linux)" if missing else ""
