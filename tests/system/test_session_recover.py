"""A session's daemon is killed in the middle of answers: hosts free themselves, and the session comes back as it was."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from edgellm.sessions.registry import Registry, read_record
from tests.system.lan import Lan
from tests.system.leftovers import Snapshot
from tests.system.machine import Machine
from tests.system.process import Process
from tests.system.swarm import ASK_TIMEOUT_S, Swarm, error_of

PORT = 8767
KEY = "k" * 20
NOTICED_S = 5.0
SLACK_S = 3.0

_STREAM = """
import http.client, json, sys
port, key, request_id, tokens = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
body = {"model": "tiny", "prompt": "def", "max_tokens": int(tokens), "stream": True, "ignore_eos": True, "temperature": 0}
connection.request("POST", "/v1/completions", json.dumps(body),
                   {"content-type": "application/json", "authorization": "Bearer " + key, "x-request-id": request_id})
answer = connection.getresponse()
print(answer.status, answer.getheader("x-edgellm-unfinished"), flush=True)
try:
    for line in answer:
        if line.startswith(b"data: "):
            print("event", line[6:].decode().strip()[:20], flush=True)
except (http.client.HTTPException, OSError):
    pass
print("end", flush=True)
"""


def stream(user: Machine, request_id: str, tokens: int) -> Process:
    return user.start([sys.executable, "-c", _STREAM, str(PORT), KEY, request_id, str(tokens)])


def listed(user: Machine) -> list[dict[str, Any]]:
    sessions: list[dict[str, Any]] = json.loads(
        user.run(["edgellm", "session", "list", "--json"]).check().stdout
    )
    return sessions


def kill_daemon(user: Machine) -> None:
    registry = Registry(
        user.runtime / f"edgellm-{os.getuid()}" / "s", user.home / ".local/state/edgellm/sessions"
    )
    record = read_record(registry.files("amber"))
    assert record is not None
    user.run(["kill", "-9", str(record.pid)]).check()


def engines(machine: Machine) -> list[str]:
    return [
        trace.detail
        for trace in Snapshot.take([machine]).traces
        if trace.kind == "process" and any(word in trace.detail for word in ("bwrap", "edgellm_vllm", "ray"))
    ]


def until(condition: Callable[[], bool], what: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"after {within_s:g} s it is not so that {what}"
        time.sleep(0.05)


def test_a_session_whose_daemon_is_killed_comes_back(lan: Lan) -> None:
    swarm = Swarm(lan)
    hosts = swarm.start_hosts("alice", "bob")
    carol = swarm.requester
    options = ("--model", "tiny", "--pp", "2", "--context", "2048", "--name", "amber", "--port", str(PORT))
    carol.environment["EDGELLM_API_KEY"] = KEY
    carol.run(swarm.command("session open", *options, "--idle", "2h"), timeout_s=ASK_TIMEOUT_S).check()
    del carol.environment["EDGELLM_API_KEY"]

    stream(carol, "before", 8).wait(30).check()
    answers = [stream(carol, name, 1900) for name in ("one", "two")]
    for answer in answers:
        answer.wait_for(r"(event.*\n){20}", 30)
    kill_daemon(carol)
    for answer in answers:
        said = answer.wait(10).check().stdout
        assert said.endswith("end\n")
        assert "event [DONE]" not in said
    until(lambda: not engines(carol), "the head's cell is gone", NOTICED_S + SLACK_S)
    for host in hosts:
        until(lambda host=host: not engines(host.machine), f"{host.name} runs no engine", NOTICED_S + SLACK_S)  # type: ignore[misc]

    (entry,) = listed(carol)
    assert (entry["state"], entry["endpoint"]) == ("crashed", f"http://127.0.0.1:{PORT}/v1")
    assert sorted(one["request_id"] for one in entry["unfinished"]) == ["one", "two"]
    error, remedy = error_of(carol.run(["edgellm", "ask", "What?", "--session", "amber"]))
    assert error == "session 'amber' crashed: 2 requests were unfinished"
    assert "edgellm session recover amber" in remedy
    # As after a reboot, which empties the runtime directory.
    carol.run(["rm", "-r", f"{carol.runtime}/edgellm-{os.getuid()}"]).check()
    assert [entry["state"] for entry in listed(carol)] == ["crashed"]

    done = carol.run(["edgellm", "session", "recover", "amber"], timeout_s=ASK_TIMEOUT_S).check()
    assert done.stdout == "amber\n"
    assert "2 requests were unfinished" in done.stderr
    again = stream(carol, "one", 8).wait(30).check().stdout.splitlines()
    assert again[0].startswith("200 20")
    assert again[-2:] == ["event [DONE]", "end"]
    assert stream(carol, "new", 8).wait(30).check().stdout.startswith("200 None")
    (entry,) = listed(carol)
    assert (entry["state"], entry["endpoint"]) == ("ready", f"http://127.0.0.1:{PORT}/v1")
    assert [one["request_id"] for one in entry["unfinished"]] == ["two"]
    assert entry["closes_in_s"] > 3600
    assert error_of(carol.run(["edgellm", "session", "recover", "amber"]))[0].endswith("it runs")

    # One that crashes again can be forgotten.
    kill_daemon(carol)
    carol.run(["edgellm", "session", "close", "amber"]).check()
    assert listed(carol) == []
    assert (
        carol.run(["find", f"{carol.home}/.local/state/edgellm/sessions", "-type", "f"]).check().stdout == ""
    )
    until(lambda: not engines(carol), "the head's cell is gone", NOTICED_S + SLACK_S)

    # A command that holds a session open takes it with it, however it ends.
    held = carol.start(swarm.command("session open", *options, "--foreground"))
    held.wait_for(r"^amber$", ASK_TIMEOUT_S, stream="stdout")
    held.signal(signal.SIGKILL)
    until(lambda: listed(carol) == [], "the session is closed", NOTICED_S + 2 * SLACK_S)
    until(lambda: not engines(carol), "the head's cell is gone", NOTICED_S + SLACK_S)
