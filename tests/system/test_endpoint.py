"""A session's endpoint: the official OpenAI and Anthropic clients, unchanged, over a cluster of two hosts."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgellm.gateway.guard import MAX_BODY_BYTES
from edgellm.sessions.daemon import MAX_REQUESTS_AT_ONCE
from edgellm.sessions.registry import Registry, read_record
from tests.nodejs import node_command
from tests.system.lan import Lan
from tests.system.machine import Machine
from tests.system.swarm import ASK_TIMEOUT_S, Swarm, error_of

KEY = "secret"
PORT = 8765
PROGRAMS = Path(__file__).parent
SEQUENCES = 4
"""Answers that run at once; what is asked beyond them waits in the engine."""
IDLE = {"running": 0, "waiting": 0, "unfinished": 0}


@dataclass
class Session:
    swarm: Swarm
    endpoint: str
    while_starting: list[dict[str, Any]]
    """What a client was told before the session was ready, one after the other."""

    @property
    def user(self) -> Machine:
        return self.swarm.requester

    def python(self, program: str, *words: str, timeout_s: float = 60.0) -> str:
        """What a program of the user's prints."""
        return self.user.run([sys.executable, "-c", program, *words], timeout_s=timeout_s).check().stdout

    def running(self) -> int:
        listed = json.loads(self.user.run(["edgellm", "session", "list", "--json"]).check().stdout)
        return int(listed[0]["running_requests"])

    def in_engine(self) -> dict[str, int]:
        """What the engine itself has to do: its scheduler's counts, and what its front end has not finished."""
        (socket,) = (path for path in self.user.runtime.rglob("api.sock") if path.parent.name != "c")
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=10) as client:
            counts: dict[str, int] = client.get("http://engine/edgellm/requests").raise_for_status().json()
        return {name: counts[name] for name in IDLE}

    def settles(self, timeout_s: float = 3.0) -> dict[str, int]:
        """What the engine has to do once it has nothing to do, or after this time: an endless answer takes longer."""
        deadline = time.monotonic() + timeout_s
        while (counts := self.in_engine()) != IDLE and time.monotonic() < deadline:
            time.sleep(0.1)
        return counts

    def files_of_daemon(self) -> int:
        """How many files and connections the session's daemon has open."""
        record = read_record(
            Registry(
                self.user.runtime / f"edgellm-{os.getuid()}" / "s",
                self.user.home / ".local/state/edgellm/sessions",
            ).files("amber")
        )
        assert record is not None
        # It has this number on the user's machine; seen from outside another one.
        return int(self.user.run(["sh", "-c", f"ls /proc/{record.pid}/fd | wc -l"]).check().stdout)


_WATCH = """
import json, openai, sys, time, urllib.error, urllib.request
endpoint, key, deadline = sys.argv[1], sys.argv[2], time.monotonic() + 120
client = openai.OpenAI(base_url=endpoint, api_key=key, max_retries=0)
while time.monotonic() < deadline:
    try:
        with urllib.request.urlopen(endpoint.removesuffix("/v1") + "/health") as answer:
            print(json.dumps({"status": answer.status, **json.load(answer)}), flush=True)
            break
    except urllib.error.HTTPError as refusal:
        said = {"status": refusal.code, **json.load(refusal)}
    except OSError:
        time.sleep(0.1)
        continue
    try:
        client.models.list()
    except openai.APIStatusError as error:
        said |= {"error": [error.status_code, error.body["message"], error.response.headers["retry-after"]]}
    print(json.dumps(said), flush=True)
    time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def session(module_lan: Lan) -> Iterator[Session]:
    swarm = Swarm(module_lan)
    swarm.start_hosts("alice", "bob")
    endpoint = f"http://127.0.0.1:{PORT}/v1"
    options = ("--model", "tiny", "--pp", "2", "--context", "1024", "--name", "amber", "--port", str(PORT))
    argv = swarm.command("session open", *options, "--sequences", str(SEQUENCES))
    watching = swarm.requester.start([sys.executable, "-c", _WATCH, endpoint, KEY])
    opened = swarm.requester.run(argv, env={"EDGELLM_API_KEY": KEY}, timeout_s=ASK_TIMEOUT_S).check()
    assert opened.stdout == "amber\n"
    assert endpoint in opened.stderr
    watched = watching.wait(10).check()
    yield Session(swarm, endpoint, [json.loads(line) for line in watched.stdout.splitlines()])
    swarm.requester.run(["edgellm", "session", "close", "amber"]).check()


@pytest.fixture(scope="module", params=["Python", "JavaScript"])
def said(request: pytest.FixtureRequest, session: Session) -> dict[str, Any]:
    """What the clients of a language were told."""
    client = [sys.executable, str(PROGRAMS / "api_clients.py")]
    if request.param == "JavaScript":
        client = node_command("system/javascript", "api_clients.mjs")
    argv = [*client, session.endpoint, KEY, "tiny"]
    answer: dict[str, Any] = json.loads(session.user.run(argv, timeout_s=ASK_TIMEOUT_S).check().stdout)
    return answer


def test_before_it_is_ready_it_says_how_far_it_is(session: Session) -> None:
    *before, last = session.while_starting
    assert (last["status"], last["state"]) == (200, "ready")
    assert "alice" in last["route"]
    assert {(one["status"], one["state"]) for one in before} == {(503, "starting")}
    details = {one["detail"] for one in before}
    assert len(details) >= 5, "it tells no progress"
    assert any(detail.startswith("alice ") for detail in details)
    # The very last one may have been ready when its list of models was asked for.
    errors = [one["error"] for one in before if "error" in one]
    assert len(errors) >= len(before) - 1
    for status, message, retry_after in errors:
        assert status == 503
        assert message.startswith("the session is not ready: ")
        assert int(retry_after) > 0


def test_answers_come_at_once_or_bit_by_bit_and_say_who_gave_them(said: dict[str, Any]) -> None:
    assert said["models"] == ["tiny"]
    assert said["chat"]["tokens"] == 16
    assert said["streamed"] == said["chat"]["text"] == said["response"] == said["response_streamed"]
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


def test_a_question_that_names_only_the_model_comes_here(session: Session) -> None:
    words = ("--max-tokens", "16", "--json")
    named = session.user.run(["edgellm", "ask", "What is a list?", "--session", "amber", *words]).check()
    done = session.user.run(session.swarm.ask("What is a list?", *words), timeout_s=60).check()
    assert "session amber is open and answers; --fresh" in done.stderr
    answer = json.loads(done.stdout)
    assert (answer["session"], answer["bring_up_s"]) == ("amber", None)
    assert answer["route"] == json.loads(named.stdout)["route"]


def test_messages_of_the_other_kind(said: dict[str, Any]) -> None:
    messages = said["messages"]
    assert messages["text"] == messages["streamed"] == said["chat"]["text"]
    assert messages["tokens"] == 16
    assert "API key is wrong" in messages["refused"]


def test_several_choices_probabilities_and_ends(said: dict[str, Any]) -> None:
    assert (said["choices"], said["logprobs"]) == (2, 4)
    assert said["repeated"], "the same seed drew other tokens"
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


def test_answers_that_are_aborted_stop_in_the_engine(session: Session) -> None:
    argv = [*node_command("system/javascript", "abort.mjs"), session.endpoint, KEY, "tiny"]
    assert json.loads(session.user.run(argv).check().stdout) == [True, 2, "APIUserAbortError"]
    assert session.settles() == IDLE


_HOLD = """
import http.client, json, select, sys, time
port, count = int(sys.argv[1]), int(sys.argv[2])
headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
body = json.dumps({"model": "tiny", "prompt": "def", "max_tokens": 900, "stream": True, "ignore_eos": True})
silent = {}
for _ in range(count):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/completions", body, headers)
    silent[connection.sock] = connection
held, refused = [], []
# Answers that wait for their turn say nothing until it comes.
while (readable := select.select(list(silent), [], [], 1.5)[0]):
    for connection in map(silent.pop, readable):
        answer = connection.getresponse()
        held.append((connection, answer))
        if answer.status != 200:
            refused.append((answer.status, answer.headers["Retry-After"], json.load(answer)["error"]))
print(json.dumps(refused), flush=True)
time.sleep(60)
"""


@contextmanager
def holding(session: Session, count: int) -> Iterator[list[Any]]:
    """A client with so many endless answers that it does not read; how those that it did not get were refused."""
    process = session.user.start([sys.executable, "-c", _HOLD, str(PORT), str(count)])
    try:
        yield json.loads(process.wait_for(r"^\[.*\]$", 30, stream="stdout")[0])
    finally:
        process.kill()


def test_the_engine_counts_what_it_runs_and_what_waits(session: Session) -> None:
    # Were these counts always nought, the next tests would show nothing.
    with holding(session, SEQUENCES + 2) as refused:
        counts = session.in_engine()
        assert counts["running"] + counts["waiting"] == counts["unfinished"] == SEQUENCES + 2
        assert counts["running"] >= SEQUENCES
        assert refused == []
    assert session.settles() == IDLE


def test_who_comes_when_all_places_are_taken_is_told_when_to_come_again(session: Session) -> None:
    with holding(session, MAX_REQUESTS_AT_ONCE + 3) as refused:
        assert len(refused) == 3
        for status, retry_after, error in refused:
            assert (status, error["type"]) == (429, "rate_limit_error")
            assert int(retry_after) > 0
        counts = session.in_engine()
        assert counts["unfinished"] == MAX_REQUESTS_AT_ONCE
        assert counts["waiting"] > 0
    # Also those that leave before their turn has come.
    assert session.settles() == IDLE


def test_a_thousand_clients_that_leave_hold_no_place(session: Session) -> None:
    files = session.files_of_daemon()
    argv = [sys.executable, str(PROGRAMS / "leaving_clients.py"), str(PORT), KEY, "tiny", "1000"]
    done = session.user.run(argv, timeout_s=90).check()
    told = json.loads(done.stdout)
    assert len(told["left"]) == 7
    assert min(told["left"].values()) >= 142
    assert told["came"] == 1000, "some got another answer than the one they meant to leave"
    assert done.duration_s < 60
    assert session.settles() == IDLE
    assert session.running() == 0
    assert session.files_of_daemon() <= files + 4
    assert session.python(_ASK, session.endpoint, KEY, timeout_s=20) == "4\n"


_ASK = """
import openai, sys
client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)
print(client.completions.create(model="tiny", prompt="def", max_tokens=4, timeout=8).usage.completion_tokens)
"""


_SEND = """
import http.client, sys
port, size = int(sys.argv[1]), int(sys.argv[2])
for length in (str(size), None):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    headers |= {"Content-Length": length} if length else {}
    chunks = (b"x" * 65536 for _ in range(size // 65536))
    connection.request("POST", "/v1/completions", chunks, headers, encode_chunked=not length)
    print(connection.getresponse().status)
"""


def test_what_is_too_large_is_refused_and_the_refusal_read(session: Session) -> None:
    # With and without a length said before.
    size = MAX_BODY_BYTES + (1 << 20)
    assert session.python(_SEND, str(PORT), str(size)).split() == ["413", "413"]


_REBIND = """
import http.client, sys
port = int(sys.argv[1])
for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {}):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/v1/models", headers={"Authorization": "Bearer secret", **headers})
    print(connection.getresponse().status)
"""


def test_pages_of_others_and_other_machines_do_not_reach_it(session: Session) -> None:
    assert session.python(_REBIND, str(PORT)).split() == ["403", "403", "200"]
    other = f"import socket; socket.create_connection(({session.user.address!r}, {PORT}), 3)"
    refused = session.swarm.meeting_point.run([sys.executable, "-c", other])
    assert "ConnectionRefusedError" in refused.stderr


def test_a_port_that_is_taken_is_said(session: Session) -> None:
    argv = session.swarm.command("session open", "--model", "tiny", "--port", str(PORT))
    error, remedy = error_of(session.user.run(argv, timeout_s=60))
    assert f"port {PORT}" in error
    assert "--port" in remedy
