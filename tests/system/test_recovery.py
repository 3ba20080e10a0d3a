"""Hosts are lost in the middle of answers: the answers go on, the same to the last token."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.system.lan import Lan
from tests.system.process import Process
from tests.system.swarm import ASK_TIMEOUT_S, Host, Swarm

PROMPT = "Exceptions are"
TOKENS = 400
NAMES = ("alice", "bob", "dave", "erin")


@dataclass
class Answer:
    """A streamed completion, and when each of its tokens came."""

    token_ids: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    text: str = ""
    is_done: bool = False

    def longest_pause_s(self) -> float:
        return max(after - before for before, after in zip(self.at, self.at[1:], strict=False))


class Streaming:
    """A completion that a thread asks for, from the requester's machine."""

    PROGRAM = """
import httpx, json, sys, time
endpoint, wanted = sys.argv[1], json.loads(sys.argv[2])
with httpx.stream("POST", endpoint + "/completions", json=wanted, timeout=180) as response:
    response.raise_for_status()
    for line in response.iter_lines():
        if line.startswith("data: "):
            print(time.time(), line[6:], flush=True)
"""

    def __init__(self, swarm: Swarm, endpoint: str, **wanted: Any) -> None:
        import sys

        request = {
            "model": "tiny",
            "prompt": PROMPT,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            **wanted,
        }
        self.process = swarm.requester.start(
            [sys.executable, "-c", self.PROGRAM, endpoint, json.dumps(request)]
        )

    def answer(self) -> Answer:
        """What has come so far."""
        answer = Answer()
        for line in self.process.stdout.splitlines():
            at, _, data = line.partition(" ")
            if data == "[DONE]":
                answer.is_done = True
                continue
            try:
                (choice,) = json.loads(data)["choices"]
            except ValueError:
                break  # The rest of the line is not there yet.
            answer.text += choice["text"]
            tokens = choice.get("token_ids") or []
            answer.token_ids += tokens
            answer.at += [float(at)] * len(tokens)
        return answer

    def wait_tokens(self, count: int, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while len(self.answer().token_ids) < count:
            assert time.monotonic() < deadline, self.process.stderr
            time.sleep(0.02)

    def finished(self) -> Answer:
        self.process.wait(ASK_TIMEOUT_S).check()
        return self.answer()


@pytest.fixture(scope="module")
def swarm(module_lan: Lan) -> Iterator[tuple[Swarm, dict[str, Host]]]:
    swarm = Swarm(module_lan)
    hosts = {host.name: host for host in swarm.start_hosts(*NAMES)}
    yield swarm, hosts


def again(swarm: Swarm, host: Host) -> Host:
    """The host's owner starts it anew."""
    return swarm.start_host(host.machine).wait_ready()


def report(swarm: Swarm) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(
        swarm.requester.run(["edgellm", "session", "show", "amber", "--json"]).check().stdout
    )
    return shown


def route(swarm: Swarm) -> list[str]:
    return [hop.split(" ")[0] for hop in report(swarm)["route"].split(" → ")]


def test_an_answer_goes_on_where_it_was(swarm: tuple[Swarm, dict[str, Host]]) -> None:
    lan, hosts = swarm
    opened = lan.requester.run(
        lan.command("session open", "--model", "tiny", "--pp", "2", "--name", "amber", "--spares", "1"),
        timeout_s=ASK_TIMEOUT_S,
    ).check()
    endpoint = report(lan)["endpoint"]
    print(opened.stderr)
    reference = Streaming(lan, endpoint).finished()
    assert len(reference.token_ids) == TOKENS

    deadline = time.monotonic() + 60
    while not report(lan)["spares"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(8)
    for kill in (Process.kill, Process.freeze):
        streaming = Streaming(lan, endpoint)
        streaming.wait_tokens(50)
        victim = hosts[route(lan)[1]]
        begun = time.time()
        kill(victim.process)
        answer = streaming.finished()
        assert answer.token_ids == reference.token_ids
        assert answer.text == reference.text
        assert victim.name not in route(lan)
        print(kill.__name__, "pause", answer.longest_pause_s(), "shown", report(lan))
        if kill is Process.freeze:
            victim.process.end_now()
        victim.process.wait()
        hosts[victim.name] = again(lan, victim)
        while not report(lan)["spares"]:
            time.sleep(0.2)
        time.sleep(8)
    print(lan.requester.run(["sh", "-c", "cat $(find $HOME $XDG_RUNTIME_DIR -name 'progress*' | head -1) | tail -60"]).stdout)
    lan.requester.run(["edgellm", "session", "close", "amber"]).check()
    for host in hosts.values():
        host.process.stop()


_ = (threading, httpx)
