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
        return self


class Swarm:
    """A LAN with a meeting point and a requester that lends nothing; hosts are added."""

    def __init__(self, lan: Lan) -> None:
        self.lan = lan
        self.meeting_point = self.machine("meet")
        self.requester = self.machine("carol")
        process = self.meeting_point.start(["edgellm", "bootstrap"])
        said = process.wait_for(r"--bootstrap (/ip4/10\.77\.\S+)", START_TIMEOUT_S)
        self.address = said[1]

    def machine(self, name: str) -> Machine:
        """A new machine whose user has used the product before, so that its directories are there."""
        machine = self.lan.add(name)
        machine.run(["edgellm", "session", "list"]).check()
        self.lan.before |= Snapshot.take([machine])
        return machine

    def start_host(
        self,
        machine: Machine,
        *options: str,
        model: Path = TINY,
        memory: str = "2GiB",
        program: Sequence[str] = ("edgellm",),
    ) -> Host:
        """Begins to lend; `Host.wait_ready` waits until it does."""
        argv = [*program, "host", "--model", str(model), "--bootstrap", self.address]
        argv += ["--memory", memory, "--threads", "1", "--grace", "0", *options]
        return Host(machine, machine.start(argv))

    def start_hosts(self, *names: str) -> list[Host]:
        """New machines that lend, ready."""
        started = [self.start_host(self.machine(name)) for name in names]
        return [host.wait_ready() for host in started]

    def command(self, verb: str, *words: str) -> list[str]:
        return ["edgellm", *verb.split(), *words, "--bootstrap", self.address]

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
