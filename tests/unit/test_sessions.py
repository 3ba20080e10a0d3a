"""Sessions on this machine: their places, their end by idleness, and questions to one over its real protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from edgellm.cli import app
from edgellm.cli._errors import told
from edgellm.errors import EdgeError, PlanError, SessionError, UsageError
from edgellm.paths import default_paths
from edgellm.sessions.client import failure_of, list_sessions
from edgellm.sessions.daemon import _until_owner_gone
from edgellm.sessions.daemon_order import Order
from edgellm.sessions.idle import Idleness
from edgellm.sessions.registry import Registry, SessionFiles, SessionRecord, read_record, runs, write_record
from edgellm.sessions.reuse import Asked, reusable
from edgellm.wire import backend_pb2, backend_pb2_grpc, session_pb2, session_pb2_grpc


class Daemon(session_pb2_grpc.SessionServicer, backend_pb2_grpc.BackendServicer):
    """Daemon and engine on one socket: answers with the words of the prompt; breaks with `failure` where it is set."""

    def __init__(self, state: str, failure: tuple[grpc.StatusCode, str] | None) -> None:
        self.failure = failure
        self.asked: list[backend_pb2.GenerateRequest] = []
        self.breaks_at_once = False
        self.closed = threading.Event()
        self.socket = ""
        self.used = threading.Event()
        """Whether a use of the session has ended."""
        self.description = session_pb2.Description(
            name="amber",
            model="tiny",
            state=state,
            network="overlay",
            isolation="bwrap",
            max_model_len=1024,
            stages=[session_pb2.StageDescription(peer="peer-a", name="alice", first_layer=0, end_layer=8)],
        )

    def Describe(
        self, request: session_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> session_pb2.Description:
        return self.description

    def Use(
        self, request: session_pb2.UseRequest, context: grpc.ServicerContext
    ) -> Iterator[session_pb2.Engine]:
        ended = threading.Event()
        context.add_callback(ended.set)
        yield session_pb2.Engine(socket=self.socket)
        ended.wait(10)
        self.used.set()

    def Close(
        self, request: session_pb2.CloseRequest, context: grpc.ServicerContext
    ) -> session_pb2.CloseReply:
        self.closed.set()
        return session_pb2.CloseReply()

    def Generate(
        self, request: backend_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[backend_pb2.GenerateEvent]:
        self.asked.append(request)
        if self.failure and self.breaks_at_once:
            context.abort(*self.failure)
        words = (request.text or request.chat.messages[-1].content).split()
        for index, word in enumerate(words):
            last = index + 1 == len(words)
            yield backend_pb2.GenerateEvent(
                token_ids=[index],
                text=word if last else f"{word} ",
                prompt_tokens=len(words),
                finish_reason="stop" if last and not self.failure else "",
            )
        if self.failure:
            context.abort(*self.failure)


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    # It is set for the whole process, and would outlive the test.
    monkeypatch.setattr("edgellm.log.log_to", lambda: None)
    return Registry.of(default_paths())


@contextmanager
def daemon(
    registry: Registry, *, state: str = "ready", failure: tuple[grpc.StatusCode, str] | None = None
) -> Iterator[tuple[Daemon, SessionFiles]]:
    """An open session named amber, whose daemon is this process."""
    _, files = registry.reserve("amber")
    write_record(files, SessionRecord("amber", "tiny", os.getpid(), psutil.Process().create_time(), state))
    serving = Daemon(state, failure)
    server = grpc.server(ThreadPoolExecutor(4))
    session_pb2_grpc.add_SessionServicer_to_server(serving, server)  # type: ignore[no-untyped-call]
    backend_pb2_grpc.add_BackendServicer_to_server(serving, server)  # type: ignore[no-untyped-call]
    serving.socket = str(files.socket)
    server.add_insecure_port(f"unix:{files.socket}")
    server.start()
    try:
        yield serving, files
    finally:
        server.stop(grace=0).wait(timeout=5)


def ask(*arguments: str) -> int:
    return told(lambda: app(["ask", "--session", "amber", *arguments], standalone_mode=False))


def test_only_the_answer_goes_to_stdout(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    with daemon(registry) as (serving, _):
        assert ask("why is it blue", "--raw", "--max-tokens", "9", "--stop", "end", "--seed", "3") == 0
        assert serving.used.wait(5), "the session would count as used for ever"
    out, err = capfd.readouterr()
    assert out == "why is it blue\n"
    assert "TTFT" in err
    assert "4 tokens" in err
    assert "alice layers 0-7" in err
    (asked,) = serving.asked
    assert (asked.sampling.max_tokens, asked.sampling.seed, list(asked.sampling.stop)) == (9, 3, ["end"])


def test_a_quiet_answer_is_alone(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    with daemon(registry):
        assert ask("why is it blue", "--raw", "--quiet") == 0
    assert capfd.readouterr() == ("why is it blue\n", "")


@pytest.mark.parametrize("option", ["--min-tok-s", "--max-load"])
def test_hosts_of_a_session_are_chosen_when_it_is_opened(
    option: str, registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    with daemon(registry) as (serving, _):
        assert ask("why", option, "1") == 2
    assert "session has its own" in capfd.readouterr().err
    assert serving.asked == []


def test_a_chat_has_the_system_prompt_first(registry: Registry) -> None:
    with daemon(registry) as (serving, _):
        assert ask("why", "--system", "be brief", "-q") == 0
    (asked,) = serving.asked
    assert [(message.role, message.content) for message in asked.chat.messages] == [
        ("system", "be brief"),
        ("user", "why"),
    ]


def test_json_is_one_object(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    with daemon(registry):
        assert ask("why blue", "--raw", "--json", "-q") == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["text"] == "why blue"
    assert shown["token_ids"] == [0, 1]
    assert shown["finish_reason"] == "stop"
    assert shown["route"] == [
        {"peer": "peer-a", "name": "alice", "first_layer": 0, "end_layer": 8, "relay": ""}
    ]


@pytest.mark.parametrize(
    ("failure", "status", "line"),
    [
        ((grpc.StatusCode.INVALID_ARGUMENT, "the prompt has 99 tokens"), 2, "the prompt has 99 tokens"),
        ((grpc.StatusCode.INTERNAL, "no memory\nand a trace"), 1, "session 'amber' failed: no memory"),
    ],
)
def test_what_breaks_is_one_line(
    failure: tuple[grpc.StatusCode, str],
    status: int,
    line: str,
    registry: Registry,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with daemon(registry, failure=failure):
        assert ask("why", "--raw", "-q") == status
    assert capfd.readouterr().err.splitlines() == [f"error: {line}"]


def test_a_session_that_broke_tells_what_its_daemon_wrote(
    registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    with daemon(registry, failure=(grpc.StatusCode.UNAVAILABLE, "closing")) as (_, files):
        record = SessionRecord("amber", "tiny", 1, 0.0, "failed", "host bob fell silent", "ask again", 1)
        write_record(files, record)
        assert ask("why", "--raw", "-q") == 1
    assert capfd.readouterr().err.splitlines() == ["error: host bob fell silent", "try:   ask again"]


def test_a_session_that_still_starts(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    with daemon(registry, state="starting") as (serving, _):
        assert ask("why", "-q") == 1
    assert "still starting" in capfd.readouterr().err
    assert serving.asked == []


def ask_model(*arguments: str) -> int:
    return told(lambda: app(["ask", "--model", "tiny", *arguments], standalone_mode=False))


def test_a_question_that_names_a_model_goes_to_an_idle_session_of_it(
    registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    with daemon(registry) as (serving, _):
        serving.description.bootstrap.append(NOBODY)
        assert ask_model("why is it blue", "--raw", "--bootstrap", NOBODY) == 0
        assert serving.used.wait(5)
    out, err = capfd.readouterr()
    assert out == "why is it blue\n"
    assert err.startswith("session amber is open and answers; --fresh brings up a cluster of its own\n")


def test_json_says_which_session_answered(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    with daemon(registry):
        assert ask_model("why", "--raw", "--json", "-q") == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["session"] == "amber"
    assert err == ""


NOBODY = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
FRESH = (
    ["--fresh"],
    ["--pp", "1"],
    ["--tp", "1"],
    ["--peers", "alice"],
    ["--context", "512"],
    ["--network", "overlay"],
    ["--isolation", "bwrap"],
    ["--kv-share"],
    ["--no-kv-share"],
    ["--kv-scope", "session"],
    ["--disaggregate", "never"],
    ["--min-tok-s", "5"],
    ["--max-load", "0.5"],
)


@pytest.mark.parametrize("options", FRESH, ids=" ".join)
def test_who_says_what_the_cluster_is_to_be_gets_one(
    options: list[str], registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    with daemon(registry) as (serving, _):
        assert ask_model("why", *options) == 2
    # It went on to look for hosts.
    assert "no peer of the swarm is known yet" in capfd.readouterr().err
    assert serving.asked == []


def test_a_session_and_a_fresh_cluster_exclude_each_other(capfd: pytest.CaptureFixture[str]) -> None:
    assert ask("why", "--fresh") == 2
    assert "exclude each other" in capfd.readouterr().err


def test_a_session_that_fails_before_its_first_word_is_replaced(
    registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    failure = (grpc.StatusCode.INVALID_ARGUMENT, "the prompt has 2000 tokens")
    with daemon(registry, failure=failure) as (serving, _):
        serving.breaks_at_once = True
        assert ask_model("why blue") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "session amber did not answer: the prompt has 2000 tokens; a cluster of its own comes up" in err
    assert "no peer of the swarm is known yet" in err


def test_a_session_that_fails_in_the_middle_is_not(
    registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    with daemon(registry, failure=(grpc.StatusCode.INTERNAL, "no memory")):
        assert ask_model("why blue", "--raw", "-q") == 1
    out, err = capfd.readouterr()
    assert out == "why blue"
    assert err.splitlines() == ["error: session 'amber' failed: no memory"]


ASKED = Asked("tiny", max_tokens=512, network="overlay", isolation="bwrap")


def described(name: str = "amber", **differences: Any) -> session_pb2.Description:
    fits: dict[str, Any] = {
        "model": "tiny",
        "state": "ready",
        "network": "overlay",
        "isolation": "bwrap",
        "max_model_len": 513,
        "opened_unix_ms": 1000,
    }
    return session_pb2.Description(name=name, **fits | differences)


def test_of_several_idle_sessions_the_last_one_opened_is_taken() -> None:
    assert reusable(ASKED, []) is None
    older, newer = described("birch"), described("amber", opened_unix_ms=2000)
    assert reusable(ASKED, [older, newer]) == reusable(ASKED, [newer, older]) == "amber"
    assert reusable(ASKED, [described("amber"), described("birch")]) == "birch"


@pytest.mark.parametrize(
    "difference",
    [
        {"model": "large"},
        {"state": "starting"},
        {"state": "closing"},
        {"running_requests": 1},
        {"network": "direct"},
        {"isolation": "none"},
        {"network": ""},
        {"max_model_len": 512},
        {"kv_scope": "public"},
    ],
    ids=str,
)
def test_a_session_that_is_busy_or_other_than_asked_for_is_left_alone(difference: dict[str, Any]) -> None:
    assert reusable(ASKED, [described(**difference)]) is None
    assert reusable(ASKED, [described(**difference), described("birch", opened_unix_ms=1)]) == "birch"


def test_a_session_of_another_swarm_than_was_named_is_left_alone() -> None:
    asked = replace(ASKED, bootstrap=("/ip4/10.0.0.1/tcp/4001/p2p/a",))
    here = described(bootstrap=["/ip4/10.0.0.1/tcp/4001/p2p/a", "/ip4/10.0.0.2/tcp/4001/p2p/b"])
    assert reusable(asked, [described(), described(bootstrap=["/ip4/10.0.0.9/tcp/4001/p2p/c"])]) is None
    assert reusable(asked, [here]) == "amber"
    assert reusable(ASKED, [here]) == "amber"


LIGHT = """
import sys
from edgellm.cli import main
sys.argv = ["edgellm", "ask", "why", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*sys.modules)
"""
HEAVY = {
    "torch",
    "vllm",
    "ray",
    "transformers",
    "libp2p",
    "fastapi",
    "trio",
    "tokenizers",
    "structlog",
    "psutil",
}


@pytest.mark.parametrize("to", [["--session", "amber"], ["--model", "tiny"]], ids=" ".join)
def test_asking_an_open_session_imports_nothing_heavy(to: list[str], registry: Registry) -> None:
    with daemon(registry) as (serving, _):
        done = subprocess.run(
            [sys.executable, "-c", LIGHT, *to, "-q"], capture_output=True, text=True, check=True, timeout=30
        )
        assert len(serving.asked) == 1
    answer, modules = done.stdout.splitlines()
    assert answer == "why"
    assert HEAVY.isdisjoint(modules.split())


def test_a_session_that_closes_says_why(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    with daemon(registry, state="closing") as (serving, _):
        serving.description.detail = "idle for 15m"
        assert ask("why", "-q") == 1
    assert capfd.readouterr().err.startswith("error: session 'amber' closes: idle for 15m\n")


def test_what_a_killed_daemon_left_is_swept(registry: Registry) -> None:
    for name, record in (
        ("dead", SessionRecord("dead", "tiny", os.getpid(), 1.0, "ready")),
        ("failed", SessionRecord("failed", "tiny", os.getpid(), 1.0, "failed", "no host left")),
    ):
        _, files = registry.reserve(name)
        write_record(files, record)
    assert [state.name for state in list_sessions(registry)] == ["failed"]
    assert registry.names() == ("failed",)


@pytest.mark.parametrize("name", ["", "A", "-a", "a b", "../a", "a/b", "a" * 33, "ä", "a\n"])
def test_names_that_are_none(name: str, registry: Registry) -> None:
    with pytest.raises(UsageError, match="cannot be a session's name"):
        registry.reserve(name)
    with pytest.raises(SessionError, match="there is no session"):
        registry.files(name)


def test_a_name_is_taken_once(registry: Registry) -> None:
    name, files = registry.reserve(None)
    assert registry.files(name) == files
    assert files.directory.stat().st_mode & 0o777 == 0o700
    with pytest.raises(SessionError, match=f"named '{name}' already"):
        registry.reserve(name)
    registry.remove(name)
    assert registry.names() == ()
    registry.remove(name)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"name": "amber"}'])
def test_a_record_that_cannot_be_read_is_none(content: bytes, registry: Registry) -> None:
    _, files = registry.reserve("amber")
    assert read_record(files) is None
    files.record.write_bytes(content)
    assert read_record(files) is None


def test_idle_time_begins_when_the_last_request_ends() -> None:
    idle = Idleness(limit_s=60.0, since=100.0)
    assert idle.expires_at() == 160.0
    busy = idle.begin().begin()
    assert busy.expires_at() is None
    assert busy.end(200.0).expires_at() is None
    assert busy.end(200.0).end(300.0).expires_at() == 360.0
    assert Idleness(limit_s=0.0, since=100.0).expires_at() is None


@given(st.lists(st.booleans(), max_size=30))
def test_a_session_in_use_never_expires(begins: list[bool]) -> None:
    idle, running, last_end = Idleness(limit_s=5.0, since=0.0), 0, 0
    for instant, begin in enumerate(begins, start=1):
        if begin:
            idle, running = idle.begin(), running + 1
        elif running:
            idle, running, last_end = idle.end(float(instant)), running - 1, instant
        assert idle.expires_at() == (None if running else last_end + 5.0)


async def test_a_session_ends_with_the_process_that_it_is_for(registry: Registry) -> None:
    owner = subprocess.Popen(["sleep", "60"])
    try:
        started = psutil.Process(owner.pid).create_time()
        assert runs(owner.pid, started)
        assert not runs(owner.pid, started - 1), "another process that has its number"
        order = Order("amber", "tiny", "", (), 60.0, owner_pid=owner.pid, owner_started=started)
        close_asked = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_owner_gone, order, close_asked)
            await trio.sleep(0.2)
            assert not close_asked.is_set()
            # It is a zombie from now on, for nobody waits for it.
            owner.kill()
            with trio.fail_after(5):
                while not close_asked.is_set():
                    await trio.sleep(0.05)
    finally:
        owner.kill()
        owner.wait()


@pytest.mark.parametrize(
    ("kind", "error"), [("PlanError", PlanError), ("", EdgeError), ("Iterator", EdgeError), ("x", EdgeError)]
)
def test_a_failure_is_raised_as_what_it_was(kind: str, error: type[EdgeError], registry: Registry) -> None:
    _, files = registry.reserve("amber")
    record = SessionRecord("amber", "tiny", 1, 0.0, "failed", "too slow", "lower it", 3, kind)
    failure = failure_of(record, "gone", files)
    assert type(failure) is error
    assert (str(failure), failure.remedy, failure.exit_code) == ("too slow", "lower it", 3)
