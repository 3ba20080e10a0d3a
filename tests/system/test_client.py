"""The Python client: a program of a user's over a cluster of two hosts, and the examples of docs/python.md."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.system.lan import Lan
from tests.system.machine import REPOSITORY
from tests.system.process import Process
from tests.system.swarm import ASK_TIMEOUT_S, TINY, Swarm

PROGRAM = Path(__file__).parent / "python_program.py"
DOCUMENT = REPOSITORY / "docs" / "python.md"


@dataclass
class Program:
    """A user's program that holds a session open, and what it said."""

    swarm: Swarm
    process: Process
    said: dict[str, Any]


@pytest.fixture(scope="module")
def program(module_lan: Lan) -> Iterator[Program]:
    swarm = Swarm(module_lan)
    started = [
        swarm.start_host(swarm.machine(name), "--max-leases", "2", memory="4GiB") for name in ("alice", "bob")
    ]
    for host in started:
        host.wait_ready()
    carol = swarm.requester
    # torch would leave one in /tmp.
    carol.environment["TORCHINDUCTOR_CACHE_DIR"] = str(carol.home / ".cache" / "inductor")
    process = carol.start([sys.executable, str(PROGRAM), swarm.address, str(TINY)])
    said = process.wait_for(r"^\{.*\}$", ASK_TIMEOUT_S, stream="stdout")
    yield Program(swarm, process, json.loads(said[0]))
    process.kill()
    process.wait()
    wait_free(swarm)


def sessions(swarm: Swarm) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(
        swarm.requester.run(["edgellm", "session", "list", "--json"]).check().stdout
    )
    return listed


def wait_free(swarm: Swarm) -> None:
    deadline = time.monotonic() + 15
    while sessions(swarm):
        assert time.monotonic() < deadline, "the session outlives the program that it was for"
        time.sleep(0.2)
    assert {peer["free_leases"] for peer in swarm.peers().values()} == {2}


@pytest.fixture(scope="module")
def said(program: Program) -> dict[str, Any]:
    return program.said


def test_it_sees_who_lends_what(said: dict[str, Any]) -> None:
    assert said["peers"] == {"alice": 0, "bob": 0}
    assert said["models"] == [["tiny", ["alice", "bob"]]]
    assert all(0 < load < 1 for load in said["loads"].values())


def test_it_opens_a_session_over_two_hosts(said: dict[str, Any]) -> None:
    assert {"discover", "plan", "lease"} <= set(said["progress"])
    assert said["session"] == {"name": "amber", "model": "tiny", "context": 1024}
    (first, begin, cut), (second, middle, end) = said["route"]
    assert ({first, second}, begin, end) == ({"alice", "bob"}, 0, 8)
    assert cut == middle


def test_answers_are_the_same_however_they_are_asked_for(said: dict[str, Any]) -> None:
    assert all(said["streamed"])
    assert said["batch"] == said["streamed"] * 3
    assert said["threads"] == said["streamed"][:1] * 6
    assert (said["counts"], said["reasons"]) == ([16], ["length"])
    assert said["asked"]
    assert said["chat"] != said["asked"]
    assert said["stopped"]
    assert said["streamed"][0].startswith(said["stopped"])
    # The likeliest one of one, at whatever temperature.
    assert said["top_k"] == said["streamed"][0]


def test_errors_are_ours(said: dict[str, Any]) -> None:
    (usage, too_long), (plan, too_busy) = said["errors"]
    assert usage == "UsageError"
    assert too_long.startswith("prompt 2 of 2: the prompt has ")
    assert plan == "PlanError"
    assert "busier than --max-load 0 allows (alice" in too_busy


def test_answers_that_are_left_hold_no_place(said: dict[str, Any]) -> None:
    # Four at once; those left would have gone on for 24 answers of 900 tokens.
    assert said["freed"] < 5


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_same_with_an_event_loop(backend: str, said: dict[str, Any]) -> None:
    there = said[backend]
    assert there["peers"] == ["alice", "bob"]
    assert there["streamed"] == said["streamed"][0]
    assert there["batch"] == said["streamed"]
    assert there["freed"] < 5


def test_no_engine_is_imported(said: dict[str, Any]) -> None:
    assert said["imported"] == []


def test_tensors_are_those_of_transformers(program: Program) -> None:
    tensors = program.said["tensors"]
    assert tensors["margin"] > 0.5, "the prompts decide nothing"
    assert tensors["generated"] == tensors["reference"]
    assert tensors["ended"] == tensors["ended_reference"]
    assert tensors["streamed"] == tensors["generated"][0]
    assert program.said["streamed"][0].strip() in program.process.stdout, "what TextStreamer wrote"
    assert tensors["layers"] == 8


def test_the_examples_of_the_documentation_run(program: Program) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(blocks) == 6
    text = "\n".join(blocks)
    for written, here in (
        ("Qwen/Qwen3-32B", "tiny"),
        ("/ip4/192.168.1.7/tcp/4001/p2p/12D3KooW…", program.swarm.address),
        ("amber-1f3c", "amber"),
    ):
        assert written in text
        text = text.replace(written, here)
    done = program.swarm.requester.run([sys.executable, "-c", text], timeout_s=ASK_TIMEOUT_S).check()
    assert "tiny 1024 ['" in done.stdout
    assert "'A list is" not in done.stdout
    assert "16 tokens" not in done.stdout
    assert "40 tokens, first after" in done.stdout
    assert "bob 2" in done.stdout or "bob 1" in done.stdout
    assert "tiny would be too slow: the fastest plan" in done.stdout
    assert "try: lower --min-tok-s" in done.stdout
    assert [session["name"] for session in sessions(program.swarm)] == ["amber"]


def test_the_command_line_refuses_too_slow_plans(program: Program) -> None:
    argv = program.swarm.ask("why", "--min-tok-s", "1000000")
    refused = program.swarm.requester.run(argv)
    assert refused.returncode == 1
    assert "at least 1e+06 is asked for" in refused.stderr
    busy = program.swarm.requester.run(
        program.swarm.command("session open", "--model", "tiny", "--max-load", "0")
    )
    assert busy.returncode == 1
    assert "busier than --max-load 0 allows" in busy.stderr
    assert [session["name"] for session in sessions(program.swarm)] == ["amber"]


def test_a_session_ends_with_the_program_that_it_is_for(program: Program) -> None:
    program.process.kill()
    program.process.wait()
    wait_free(program.swarm)
