"""A session's endpoint: the official OpenAI and Anthropic clients, unchanged, over a cluster of two hosts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.system.lan import Lan
from tests.system.machine import Machine
from tests.system.swarm import ASK_TIMEOUT_S, Swarm, error_of

KEY = "secret"
CLIENT = Path(__file__).parent / "api_clients.py"


@dataclass
class Session:
    swarm: Swarm
    endpoint: str

    @property
    def user(self) -> Machine:
        return self.swarm.requester

    def python(self, program: str, *words: str, timeout_s: float = 60.0) -> str:
        """What a program of the user's prints."""
        return self.user.run([sys.executable, "-c", program, *words], timeout_s=timeout_s).check().stdout

    def running(self) -> int:
        listed = json.loads(self.user.run(["edgellm", "session", "list", "--json"]).check().stdout)
        return int(listed[0]["running_requests"])


@pytest.fixture(scope="module")
def session(module_lan: Lan) -> Iterator[Session]:
    swarm = Swarm(module_lan)
    swarm.start_hosts("alice", "bob")
    options = ("--model", "tiny", "--pp", "2", "--context", "1024", "--name", "amber")
    opened = swarm.requester.run(
        swarm.command("session open", *options), env={"EDGELLM_API_KEY": KEY}, timeout_s=ASK_TIMEOUT_S
    ).check()
    assert opened.stdout == "amber\n"
    listed = json.loads(swarm.requester.run(["edgellm", "session", "list", "--json"]).check().stdout)
    endpoint = listed[0]["endpoint"]
    assert endpoint in opened.stderr
    yield Session(swarm, endpoint)
    swarm.requester.run(["edgellm", "session", "close", "amber"]).check()


@pytest.fixture(scope="module")
def said(session: Session) -> dict[str, Any]:
    """What the clients were told."""
    argv = [sys.executable, str(CLIENT), session.endpoint, KEY, "tiny"]
    answer: dict[str, Any] = json.loads(session.user.run(argv, timeout_s=ASK_TIMEOUT_S).check().stdout)
    return answer


def test_answers_come_at_once_or_bit_by_bit_and_say_who_gave_them(said: dict[str, Any]) -> None:
    assert said["models"] == ["tiny"]
    assert said["chat"]["tokens"] == 16
    assert said["streamed"] == said["chat"]["text"] == said["response"]
    assert said["usage"] == 16
    assert sorted(part.split()[0] for part in said["route"].split(", ")) == ["alice", "bob"]


def test_the_same_words_as_by_the_cli(session: Session, said: dict[str, Any]) -> None:
    argv = [
        "edgellm",
        "ask",
        "What is a list?",
        "--session",
        "amber",
        "--temperature",
        "0",
        "--max-tokens",
        "16",
    ]
    assert session.user.run([*argv, "--quiet"], timeout_s=60).check().stdout.strip("\n") == said["chat"][
        "text"
    ].strip("\n")


def test_messages_of_the_other_kind(said: dict[str, Any]) -> None:
    messages = said["messages"]
    assert messages["text"] == messages["streamed"] == said["chat"]["text"]
    assert messages["tokens"] == 16
    assert "API key is wrong" in messages["refused"]


def test_several_choices_probabilities_and_ends(said: dict[str, Any]) -> None:
    assert (said["choices"], said["logprobs"]) == (2, 4)
    assert said["completion"]
    assert "\n" not in said["completion"]


def test_schemas_and_tools_hold(said: dict[str, Any]) -> None:
    assert said["schema"].keys() == {"colour", "count"}
    assert said["schema"]["colour"] in ("blue", "green")
    assert isinstance(said["schema"]["count"], int)
    name, arguments = said["tool"]
    assert name == "weather"
    assert arguments["city"] in ("Paris", "Rome")


def test_errors_are_those_that_clients_know(said: dict[str, Any]) -> None:
    assert said["errors"] == {
        "model": [404, "NotFoundError", True],
        "context": [400, "BadRequestError", True],
        "parameter": [400, "BadRequestError", True],
        "key": [401, "AuthenticationError", True],
    }


_LEAVE = """
import openai, sys
client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)
for _ in range(int(sys.argv[3])):
    stream = client.completions.create(
        model="tiny", prompt="def", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
print(client.completions.create(model="tiny", prompt="def", max_tokens=4, timeout=8).usage.completion_tokens)
"""


def test_clients_that_leave_in_the_middle_hold_no_place(session: Session) -> None:
    # Four answers run at once; had those that nobody reads gone on, the last one would wait for many of them.
    assert session.python(_LEAVE, session.endpoint, KEY, "50", timeout_s=120) == "4\n"
    assert session.running() == 0


_REBIND = """
import http.client, sys
port = int(sys.argv[1])
for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {}):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/v1/models", headers={"Authorization": "Bearer secret", **headers})
    print(connection.getresponse().status)
"""


def test_pages_of_others_and_other_machines_do_not_reach_it(session: Session) -> None:
    port = session.endpoint.split(":")[2].partition("/")[0]
    assert session.python(_REBIND, port).split() == ["403", "403", "200"]
    other = f"import socket; socket.create_connection(({session.user.address!r}, {port}), 3)"
    refused = session.swarm.meeting_point.run([sys.executable, "-c", other])
    assert "ConnectionRefusedError" in refused.stderr


def test_a_port_that_is_taken_is_said(session: Session) -> None:
    port = session.endpoint.split(":")[2].partition("/")[0]
    argv = session.swarm.command("session open", "--model", "tiny", "--port", port)
    error, remedy = error_of(session.user.run(argv, timeout_s=60))
    assert f"port {port}" in error
    assert "--port" in remedy
