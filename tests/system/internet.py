"""An internet of machines with public addresses, and of routers (NAT by nftables) with machines behind them; all of it here."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.system.lan import Lan
from tests.system.leftovers import Snapshot
from tests.system.machine import Machine
from tests.system.namespaces import Namespaces, command
from tests.system.process import Process

MINIUPNPD = shutil.which("miniupnpd", path="/usr/sbin:/sbin:/usr/bin")
NETWORK = "45.9.0"
"""Addresses that count as public; no packet of this network leaves this machine."""

Nat = Literal["full cone", "port restricted", "symmetric"]
"""Whom a router lets in at a port from which a machine behind it has connected: everybody; those to whom it has connected; and
besides, each destination sees another port. conntrack by itself does the last two: a full cone is one by a rule that leads
all of its ports to the one machine behind it.
"""


@dataclass
class Router:
    """A router, and the addresses of its two sides."""

    name: str
    address: str
    inside: str
    nat: Nat
    namespaces: Namespaces
    machines: int = 0
    upnp: Process | None = None


class Internet(Lan):
    """The switch is the internet here: `add` plugs a machine into it, `behind` one into a router that is plugged in."""

    def __init__(self, visible: Iterable[Path] = ()) -> None:
        super().__init__(visible)
        self.routers: list[Router] = []

    def __enter__(self) -> Internet:
        super().__enter__()
        return self

    def add(self, name: str) -> Machine:
        """A new machine with a public address."""
        machine = self._machine(name, f"{NETWORK}.{len(self.machines) + 1}")
        self._plug(machine.namespaces, machine.address, f"port{len(self.machines)}")
        self.before |= Snapshot.take([machine])
        return machine

    def router(self, name: str, nat: Nat) -> Router:
        """A new router; what has not been asked for from behind it is dropped, as home routers do."""
        number = len(self.routers) + 1
        namespaces = Namespaces(name)
        self._undo.callback(namespaces.close)
        router = Router(name, f"{NETWORK}.{200 + number}", f"192.168.{number}.1", nat, namespaces)
        self.routers.append(router)
        self._plug(namespaces, router.address, f"router{number}")
        namespaces.command("ip", "link", "set", "eth0", "name", "wan")
        namespaces.command("ip", "link", "set", "wan", "up")
        namespaces.command("ip", "link", "add", "lan", "type", "bridge", "forward_delay", "0")
        namespaces.command("ip", "address", "add", f"{router.inside}/24", "dev", "lan")
        namespaces.command("ip", "link", "set", "lan", "up")
        namespaces.command("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        namespaces.command("nft", _rules(nat, f"192.168.{number}.2"))
        return router

    def behind(self, router: Router, name: str) -> Machine:
        """A new machine behind a router."""
        router.machines += 1
        machine = self._machine(name, f"{router.inside.rpartition('.')[0]}.{router.machines + 1}")
        port = f"port{router.machines}"
        command(
            *("ip", "link", "add", "name", "eth0", "netns", str(machine.namespaces.init), "type", "veth"),
            *("peer", "name", port, "netns", str(router.namespaces.init)),
        )
        router.namespaces.command("ip", "link", "set", port, "master", "lan", "up")
        _address(machine.namespaces, machine.address)
        machine.namespaces.command("ip", "route", "add", "default", "via", router.inside)
        self.before |= Snapshot.take([machine])
        return machine

    def with_miniupnpd(self, router: Router, by: Literal["UPnP", "NAT-PMP"]) -> None:
        """Starts miniupnpd on a router, which then maps ports for who asks that way."""
        assert MINIUPNPD is not None
        settings = self._root / f"{router.name}.miniupnpd"
        settings.write_text(
            f"ext_ifname=wan\nlistening_ip=lan\nhttp_port=0\nenable_upnp={'yes' if by == 'UPnP' else 'no'}\n"
            f"enable_natpmp={'yes' if by == 'NAT-PMP' else 'no'}\nsecure_mode=yes\nsystem_uptime=yes\n"
            "upnp_table_name=filter\nupnp_nat_table_name=filter\n"
            "upnp_forward_chain=miniupnpd\nupnp_nat_chain=prerouting_miniupnpd\n"
            "upnp_nat_postrouting_chain=postrouting_miniupnpd\n"
            f"uuid=00000000-0000-0000-0000-{len(self.routers):012d}\n"
            "allow 1024-65535 0.0.0.0/0 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n"
        )
        router.upnp = Process(
            router.namespaces.enter,
            [MINIUPNPD, "-d", "-f", str(settings), "-P", str(settings.with_suffix(".pid"))],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            cwd=self._root,
        )

    def mapped_ports(self, router: Router) -> str:
        """The rules by which a router leads ports to machines behind it."""
        return router.namespaces.command("nft", "list", "table", "inet", "filter")

    def _machine(self, name: str, address: str) -> Machine:
        machine = Machine(name, address, self._root / name, self._visible)
        self._undo.callback(machine.namespaces.close)
        self.machines.append(machine)
        return machine

    def _plug(self, namespaces: Namespaces, address: str, port: str) -> None:
        command(
            *("ip", "link", "add", "name", "eth0", "netns", str(namespaces.init), "type", "veth"),
            *("peer", "name", port, "netns", str(self._switch.init)),
        )
        self._switch.command("ip", "link", "set", port, "master", "lan", "up")
        _address(namespaces, address)


def _address(namespaces: Namespaces, address: str) -> None:
    namespaces.command("ip", "address", "add", f"{address}/24", "dev", "eth0")
    namespaces.command("ip", "link", "set", "eth0", "up")


def _rules(nat: Nat, machine: str) -> str:
    how = " random,fully-random" if nat == "symmetric" else ""
    lead = f"iifname wan tcp dport 1024-65535 dnat ip to {machine}" if nat == "full cone" else ""
    return "\n".join(
        [
            "table inet filter {",
            "chain miniupnpd {}",
            "chain prerouting_miniupnpd {}",
            "chain postrouting_miniupnpd {}",
            "chain forward { type filter hook forward priority 0; policy drop; ",
            "iifname lan accept; ct state established,related accept; ct status dnat accept; jump miniupnpd; }",
            "chain input { type filter hook input priority 0; policy accept; ",
            "iifname wan ct state established,related accept; iifname wan drop; }",
            f"chain prerouting {{ type nat hook prerouting priority -100; jump prerouting_miniupnpd; {lead} ; }}",
            "chain postrouting { type nat hook postrouting priority 100; ",
            f"jump postrouting_miniupnpd; oifname wan masquerade{how}; }}",
            "}",
        ]
    )
