"""`session swap`: another model behind the same endpoint, under load, and no request fails."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.system.lan import Lan
from tests.system.swarm import ASK_TIMEOUT_S, TINY, Host, Swarm, error_of

CLIENTS = 8
AFTER_S = 3.0
"""For answers of who has just come."""
LOAD = Path(__file__).parent / "swap_load.py"


@dataclass
class Session:
    swarm: Swarm
    hosts: dict[str, Host]
    endpoint: str

    def described(self) -> dict[str, Any]:
        shown = self.swarm.requester.run(["edgellm", "session", "show", "amber", "--json"]).check()
        described: dict[str, Any] = json.loads(shown.stdout)
        return described

    def swap(self, model: str) -> str:
        """What it says on the way."""
        argv = ["edgellm", "session", "swap", "amber", "--model", model]
        return self.swarm.requester.run(argv, timeout_s=ASK_TIMEOUT_S).check().stderr

    @contextmanager
    def busy(self, model: str) -> Iterator[dict[str, Any]]:
        """Asked without a break meanwhile; what came of it is there when the context has ended."""
        came: dict[str, Any] = {}
        user = self.swarm.requester
        stop = "/tmp/stop"
        argv = [sys.executable, str(LOAD), self.endpoint, model, str(CLIENTS), stop]
        load = user.start(argv)
        load.wait_for("answered", 60)
        try:
            yield came
            time.sleep(AFTER_S)
        finally:
            user.run(["touch", stop]).check()
            done = load.wait(ASK_TIMEOUT_S)
            user.run(["rm", stop]).check()
        came.update(json.loads(done.check().stdout))


@pytest.fixture(autouse=True)
def leaves_nothing() -> None:
    """In place of the check of each test: what a swap brings up stays. At the module's end nothing may (`Lan.end_all`)."""


@pytest.fixture(scope="module")
def other_model() -> Iterator[Path]:
    """The same weights under another name."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(shutil.copytree(TINY, Path(directory) / "other"))


@pytest.fixture(scope="module")
def session(module_lan: Lan, other_model: Path) -> Iterator[Session]:
    swarm = Swarm(module_lan)
    names = ("alice", "bob", "dave", "erin")
    started = {name: swarm.start_host(swarm.machine(name), "--model", str(other_model)) for name in names}
    for host in started.values():
        host.wait_ready()
    options = ("--model", "tiny", "--pp", "2", "--context", "512", "--name", "amber")
    swarm.requester.run(swarm.command("session open", *options), timeout_s=ASK_TIMEOUT_S).check()
    it = Session(swarm, started, "")
    it.endpoint = it.described()["endpoint"]
    yield it
    swarm.requester.run(["edgellm", "session", "close", "amber"]).check()


def test_beside_the_old_cluster_nobody_waits_for_the_new_one(session: Session) -> None:
    before = session.described()
    with session.busy("tiny") as came:
        said = session.swap("other")
    after = session.described()
    assert came["failures"] == []
    assert came["answers"].keys() == {"tiny", "other"}
    assert "requests wait" not in said
    assert (before["model"], after["model"]) == ("tiny", "other")
    assert before["endpoint"] == after["endpoint"]
    members = {name for name in session.hosts if name in before["route"]}
    assert not any(name in after["route"] for name in members)


def test_without_room_for_both_requests_wait_and_none_fails(session: Session) -> None:
    used = session.described()["route"]
    for name, host in session.hosts.items():
        if name not in used:
            host.process.interrupt()
            host.process.wait(20)
    with session.busy("tiny") as came:
        # They still say the name of the model before.
        said = session.swap("tiny")
    assert "requests wait" in said
    assert came["failures"] == []
    assert came["answers"].keys() == {"tiny", "other"}
    assert session.described()["model"] == "tiny"


def test_a_swap_that_cannot_be_changes_nothing(session: Session) -> None:
    before = session.described()
    with session.busy("tiny") as came:
        argv = ["edgellm", "session", "swap", "amber", "--model", "nobody-has-this"]
        error, remedy = error_of(session.swarm.requester.run(argv, timeout_s=60))
    assert "nobody-has-this" in error
    assert "tiny" in remedy
    assert came["failures"] == []
    assert came["answers"].keys() == {"tiny"}
    after = session.described()
    assert (after["model"], after["route"]) == (before["model"], before["route"])
