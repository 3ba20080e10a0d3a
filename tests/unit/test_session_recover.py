"""A session's daemon, a process of its own, is killed amid an answer and comes back."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm.cli.session import report
from edgellm.errors import SessionError, UsageError
from edgellm.paths import default_paths
from edgellm.sessions import client
from edgellm.sessions.client import close_session, list_sessions, session_state, start_session
from edgellm.sessions.daemon_order import Order
from edgellm.sessions.recover import recover_session
from edgellm.sessions.registry import Registry, SessionFiles, read_record
from edgellm.sessions.story import read_journal

DAEMON = Path(__file__).parent / "session_daemon.py"
KEY = "secret"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    # Paths of Unix sockets are short.
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    popen = subprocess.Popen

    def begin(argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert argv[1:] == ["-m", "edgellm.sessions.daemon"]
        environment = os.environ | {"PYTHONPATH": str(DAEMON.parents[2])}
        return popen([sys.executable, str(DAEMON)], env=environment, **options)

    monkeypatch.setattr(client.subprocess, "Popen", begin)
    registry = Registry.of(default_paths())
    yield registry
    for name in registry.names():
        close_session(registry, name)


def order_of(files: SessionFiles) -> Order:
    return Order(
        "amber",
        "tiny",
        str(files.directory),
        (),
        3600.0,
        api_key=KEY,
        journal=str(files.journal),
        max_cost_s=7200.0,
    )


def nobody(line: object) -> None:
    """Is told of progress."""


def opened(registry: Registry) -> dict[str, Any]:
    _, files = registry.reserve("amber")
    start_session(registry, order_of(files), files, nobody)
    return described(registry)


def described(registry: Registry) -> dict[str, Any]:
    return report(session_state(registry, "amber"))


def port_of(entry: dict[str, Any]) -> int:
    return int(entry["endpoint"].split(":")[2].partition("/")[0])


def ask(port: int, request_id: str, prompt: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {KEY}",
        "x-request-id": request_id,
    }
    connection.request("POST", "/v1/completions", json.dumps({"prompt": prompt}), headers)
    return connection.getresponse()


def kill(registry: Registry) -> None:
    record = read_record(registry.files("amber"))
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    until(lambda: session_state(registry, "amber").story is not None)


def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def on_disk(registry: Registry, request: str) -> None:
    """A request is within a second."""
    name = f'"{request}"'.encode()
    until(lambda: name in registry.files("amber").journal.read_bytes())


def test_it_comes_back_with_its_endpoint_and_what_was_unfinished(registry: Registry) -> None:
    before = opened(registry)
    port = port_of(before)
    assert ask(port, "before", "short").read().startswith(b"data: 1")
    running = ask(port, "mine", "endless")
    assert running.readline() == b"data: 1\n"
    on_disk(registry, "mine")
    kill(registry)

    (state,) = list_sessions(registry)
    assert state.has_crashed
    crashed = report(state)
    assert (crashed["state"], crashed["endpoint"], crashed["route"]) == (
        "crashed",
        before["endpoint"],
        "alice → bob",
    )
    assert [(one["path"], one["request_id"]) for one in crashed["unfinished"]] == [
        ("/v1/completions", "mine")
    ]
    journal = registry.files("amber").journal
    assert journal is not None
    assert b"endless" not in journal.read_bytes(), "no word of a prompt is kept"

    assert len(recover_session(registry, "amber", nobody).lost()) == 1
    after = described(registry)
    assert (after["state"], after["endpoint"], after["model"]) == ("ready", before["endpoint"], "tiny")
    assert [one["request_id"] for one in after["unfinished"]] == ["mine"]
    assert after["cost_s"] >= crashed["cost_s"] > 0
    assert after["max_cost_s"] == 7200.0
    other = ask(port, "other", "short")
    assert (other.status, other.getheader("x-edgellm-unfinished")) == (200, None)
    again = ask(port, "mine", "short")
    told = again.getheader("x-edgellm-unfinished")
    assert told is not None
    assert told.startswith("20")
    again.read()
    until(lambda: described(registry)["unfinished"] == [])
    with pytest.raises(SessionError, match="it runs"):
        recover_session(registry, "amber", nobody)

    close_session(registry, "amber")
    assert registry.names() == ()
    assert list(default_paths().journals.iterdir()) == []


def test_it_can_crash_again_and_on_the_way_back(registry: Registry) -> None:
    port = port_of(opened(registry))
    # Kept: a client that leaves has its request ended.
    one = ask(port, "one", "endless")
    one.readline()
    on_disk(registry, "one")
    kill(registry)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(UsageError, match=f"port {port}"):
            recover_session(registry, "amber", nobody)
        assert session_state(registry, "amber").has_crashed
        recover_session(registry, "amber", nobody, port=0)
    port = port_of(described(registry))
    two = ask(port, "two", "endless")
    two.readline()
    on_disk(registry, "two")
    kill(registry)
    del one, two
    story = read_journal(registry.files("amber").journal)
    assert story is not None
    assert [one.request_id for one in story.lost()] == ["one", "two"]
    assert story.opened.order.port == port


def test_one_that_ends_as_it_should_leaves_no_journal(registry: Registry) -> None:
    opened(registry)
    record = read_record(registry.files("amber"))
    assert record is not None
    os.kill(record.pid, signal.SIGTERM)
    until(lambda: registry.names() == ())
    assert list(default_paths().journals.iterdir()) == []
