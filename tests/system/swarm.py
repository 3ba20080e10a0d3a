"""The product's own commands on the machines of a `Lan`: a meeting point, hosts, requesters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.lan import Lan
from tests.system.leftovers import Snapshot
from tests.system.machine import REPOSITORY, Machine
from tests.system.process import Completed, Process

TINY = REPOSITORY / "models" / "tiny"
PORT = 4001
CACHE = ".cache/edgellm"
MEASURED = "devices-*.json"
START_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 150.0


@dataclass
class Host:
    """A machine that lends, and the process that does."""

    machine: Machine
    process: Process

    @property
    def name(self) -> str:
        return self.machine.name

    def wait_ready(self) -> Host:
        self.process.wait_for(r"join through it: --bootstrap", START_TIMEOUT_S)
        for file in self.machine.namespaces.inside(self.machine.home / CACHE).glob(MEASURED):
            _measured.setdefault(file.name, file.read_bytes())
        return self


_directories: list[Path] = []
"""What the product's first use makes on a machine, below its root; seen once."""
_measured: dict[str, bytes] = {}
"""What hosts found when they measured their devices; the first one does. Machines of a LAN are really one, and measuring takes
both of its cores for seconds."""


def _use(machine: Machine) -> None:
    """As if its user had used the product before: its directories are there, and its devices measured if anybody's are."""
    root = machine.home.parent
    if not _directories:
        machine.run(["edgellm", "session", "list"]).check()
        found = [path for top in (machine.home, machine.runtime) for path in sorted(top.rglob("*"))]
        _directories.extend(path.relative_to(root) for path in found if path.is_dir())
    for directory in _directories:
        (root / directory).mkdir(mode=0o700, exist_ok=True)
    for file, content in _measured.items():
        (machine.home / CACHE / file).write_bytes(content)


def use(lan: Lan, name: str) -> Machine:
    """A new machine whose user has used the product before."""
    machine = lan.add(name)
    _use(machine)
    lan.before |= Snapshot.take([machine])
    return machine


class Swarm:
    """A LAN with a meeting point and a requester that lends nothing; hosts are added."""

    def __init__(self, lan: Lan) -> None:
        self.lan = lan
        self.meeting_point = self.machine("meet")
        process = self.meeting_point.start(["edgellm", "bootstrap"])
        self.requester = self.machine("carol")
        said = process.wait_for(r"--bootstrap (/ip4/10\.77\.\S+)", START_TIMEOUT_S)
        self.address = said[1]

    def machine(self, name: str) -> Machine:
        """A new machine whose user has used the product before."""
        return use(self.lan, name)

    def start_host(
        self,
        machine: Machine,
        *options: str,
        model: Path = TINY,
        memory: str = "2GiB",
        program: Sequence[str] = ("edgellm",),
    ) -> Host:
        """Begins to lend; `Host.wait_ready` waits until it does."""
        argv = [*program, "host", "--model", str(model), "--allow-anyone", "--bootstrap", self.address]
        argv += ["--memory", memory, "--threads", "1", "--grace", "0", *options]
        return Host(machine, machine.start(argv))

    def start_hosts(self, *names: str) -> list[Host]:
        """New machines that lend, ready."""
        started = [self.start_host(self.machine(name)) for name in names]
        return [host.wait_ready() for host in started]

    def command(self, verb: str, *words: str) -> list[str]:
        lending = ("--allow-anyone",) if verb == "host" else ()
        return ["edgellm", *verb.split(), *words, *lending, "--bootstrap", self.address]

    def ask(self, prompt: str, *options: str, model: str = "tiny") -> list[str]:
        """The command line of a greedy question."""
        return self.command("ask", prompt, "--model", model, "--temperature", "0", *options)

    def peers(self, machine: Machine | None = None) -> dict[str, dict[str, Any]]:
        """What `edgellm peers --json` says, by name."""
        done = (machine or self.requester).run(self.command("peers", "--json")).check()
        return {peer["name"]: peer for peer in json.loads(done.stdout)}


def error_of(done: Completed) -> tuple[str, str]:
    """The error line and the remedy line of a command that failed as it should. Raises AssertionError when it did not
    end with exactly one of each, or showed a traceback.
    """
    assert done.returncode > 0, f"ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.splitlines()
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    remedies = [line.removeprefix("try:").strip() for line in lines if line.startswith("try:")]
    assert (len(errors), len(remedies)) == (1, 1), done.stderr
    return errors[0], remedies[0]
