"""Hosts are lost in the middle of answers: the answers go on, the same to the last token."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.system.lan import Lan
from tests.system.process import Process
from tests.system.swarm import ASK_TIMEOUT_S, Host, Swarm

PROMPT = "Exceptions are"
TOKENS = 400
BEFORE = 60
"""Tokens that have come when a host is lost."""
NAMES = ("alice", "bob", "dave", "erin", "frank", "grace")
"""Two of them are killed for good, two more disturbed; two answer, and one is to take a place."""
SESSION = "amber"


@dataclass
class Answer:
    """A streamed completion, as far as it has come."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    is_done: bool = False


class Streaming:
    """A completion that a client on the requester's machine has streamed to it."""

    PROGRAM = """
import httpx, json, sys
with httpx.stream("POST", sys.argv[1] + "/completions", json=json.loads(sys.argv[2]), timeout=180) as response:
    response.raise_for_status()
    for line in response.iter_lines():
        if line.startswith("data: "):
            print(line[6:], flush=True)
"""

    def __init__(self, swarm: Swarm, endpoint: str) -> None:
        request = {
            "model": "tiny",
            "prompt": PROMPT,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        argv = [sys.executable, "-c", self.PROGRAM, endpoint, json.dumps(request)]
        self.process = swarm.requester.start(argv)

    def answer(self) -> Answer:
        answer = Answer()
        for data in self.process.stdout.splitlines():
            if data == "[DONE]":
                answer.is_done = True
                continue
            try:
                (choice,) = json.loads(data)["choices"]
            except ValueError:
                break  # The rest of the line is not there yet.
            answer.text += choice["text"]
            answer.token_ids += choice.get("token_ids") or []
        return answer

    def wait_begun(self) -> None:
        deadline = time.monotonic() + 60
        while len(self.answer().token_ids) < BEFORE:
            assert time.monotonic() < deadline, self.process.stderr
            time.sleep(0.02)

    def finished(self) -> Answer:
        self.process.wait(ASK_TIMEOUT_S).check()
        return self.answer()


@dataclass
class Lenders:
    swarm: Swarm
    by_name: dict[str, Host]

    def bury(self, host: Host) -> None:
        """One that was killed could not tidy up; the next start does."""
        host.process.wait()
        self.swarm.start_host(self.by_name.pop(host.name).machine).wait_ready().process.stop()


@dataclass
class Session:
    swarm: Swarm
    endpoint: str = ""
    reference: Answer = field(default_factory=Answer)
    """What it says when nothing happens."""

    def shown(self) -> dict[str, Any]:
        argv = ["edgellm", "session", "show", SESSION, "--json"]
        shown: dict[str, Any] = json.loads(self.swarm.requester.run(argv).check().stdout)
        return shown

    def route(self) -> list[str]:
        return [hop.split(" ")[0] for hop in self.shown()["route"].split(" → ")]


@pytest.fixture(scope="module")
def lenders(module_lan: Lan) -> Iterator[Lenders]:
    swarm = Swarm(module_lan)
    hosts = {host.name: host for host in swarm.start_hosts(*NAMES)}
    lenders = Lenders(swarm, hosts)
    yield lenders
    for host in lenders.by_name.values():
        host.process.stop()


@pytest.fixture
def session(lenders: Lenders) -> Iterator[Session]:
    swarm = lenders.swarm
    argv = swarm.command("session open", "--model", "tiny", "--pp", "2", "--name", SESSION)
    swarm.requester.run(argv, timeout_s=ASK_TIMEOUT_S).check()
    session = Session(swarm)
    session.endpoint = session.shown()["endpoint"]
    yield session
    swarm.requester.run(["edgellm", "session", "close", SESSION]).check()


def test_a_question_of_the_command_line_goes_on_and_says_so(lenders: Lenders) -> None:
    swarm = lenders.swarm
    argv = swarm.ask(PROMPT, "--raw", "--pp", "2", "--max-tokens", "300", "--fresh", "--json")
    undisturbed = json.loads(swarm.requester.run(argv, timeout_s=ASK_TIMEOUT_S).check().stdout)
    argv.remove("--json")
    asking: Process = swarm.requester.start(argv)
    asking.wait_for(r"^ready in", ASK_TIMEOUT_S, stream="stderr")
    asking.wait_for(re.escape(undisturbed["text"][:60]), 30, stream="stdout")
    names = re.findall(r"s  (\w+) +leased layers", asking.stderr)
    victim = lenders.by_name[names[0]]
    victim.process.kill()
    done = asking.wait(ASK_TIMEOUT_S).check()
    assert done.stdout == undisturbed["text"] + "\n"
    assert f"lost: host {victim.name}" in done.stderr
    assert "resumed: after" in done.stderr
    summary = next(line for line in done.stderr.splitlines() if line.startswith("TTFT"))
    assert victim.name not in summary
    lenders.bury(victim)


def test_streams_go_on_in_the_same_response(lenders: Lenders, session: Session) -> None:
    session.reference = Streaming(session.swarm, session.endpoint).finished()
    assert len(session.reference.token_ids) == TOKENS
    for fault in ("kill", "freeze", "unplug"):
        _interrupted(lenders, session, fault)


def _interrupted(lenders: Lenders, session: Session, fault: str) -> None:
    swarm = session.swarm
    streaming = Streaming(swarm, session.endpoint)
    streaming.wait_begun()
    before = session.shown()
    victim = lenders.by_name[session.route()[-1]]
    match fault:
        case "kill":
            victim.process.kill()
        case "freeze":
            victim.process.freeze()
        case "unplug":
            swarm.lan.unplug(victim.machine)
    answer = streaming.finished()
    assert answer == session.reference
    assert victim.name not in session.route()
    assert session.shown()["recoveries"] == before["recoveries"] + 1

    match fault:
        case "kill":
            lenders.bury(victim)
            return
        case "freeze":
            victim.process.thaw()
        case "unplug":
            swarm.lan.plug(victim.machine)
    # It has let go of what it ran, and lends again.
    deadline = time.monotonic() + 30
    while (peer := swarm.peers().get(victim.name)) is None or not peer["free_leases"]:
        assert time.monotonic() < deadline, peer
        time.sleep(0.5)
