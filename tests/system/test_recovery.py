"""A host is lost in the middle of a question's answer: it goes on, the same to the last letter (streams: `test_chaos.py`)."""

from __future__ import annotations

import json
import re

import pytest

from tests.system.lan import Lan
from tests.system.process import Process
from tests.system.swarm import ASK_TIMEOUT_S, Host, Swarm

PROMPT = "Exceptions are"
NAMES = ("alice", "bob", "dave")
"""Two answer, and one is to take a place."""


@pytest.fixture
def hosts(lan: Lan) -> tuple[Swarm, dict[str, Host]]:
    swarm = Swarm(lan)
    return swarm, {host.name: host for host in swarm.start_hosts(*NAMES)}


def test_a_question_of_the_command_line_goes_on_and_says_so(hosts: tuple[Swarm, dict[str, Host]]) -> None:
    swarm, by_name = hosts
    argv = swarm.ask(PROMPT, "--raw", "--pp", "2", "--max-tokens", "300", "--fresh", "--json")
    undisturbed = json.loads(swarm.requester.run(argv, timeout_s=ASK_TIMEOUT_S).check().stdout)
    argv.remove("--json")
    asking: Process = swarm.requester.start(argv)
    asking.wait_for(r"^ready in", ASK_TIMEOUT_S, stream="stderr")
    asking.wait_for(re.escape(undisturbed["text"][:60]), 30, stream="stdout")
    names = re.findall(r"s  (\w+) +leased layers", asking.stderr)
    victim = by_name[names[0]]
    victim.process.kill()
    done = asking.wait(ASK_TIMEOUT_S).check()
    assert done.stdout == undisturbed["text"] + "\n"
    assert f"lost: host {victim.name}" in done.stderr
    assert "resumed: after" in done.stderr
    summary = next(line for line in done.stderr.splitlines() if line.startswith("TTFT"))
    assert victim.name not in summary
    # One that was killed could not tidy up; the next start does.
    victim.process.wait()
    swarm.start_host(victim.machine).wait_ready().process.stop()
