"""A session's journal: readable whenever its writer ends, without words of its users, and enough to bring the session back."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.cli import app
from edgellm.cli._errors import told as told_error
from edgellm.errors import SessionError, UsageError
from edgellm.paths import default_paths
from edgellm.sessions import journal, recover
from edgellm.sessions.client import list_sessions, session_state
from edgellm.sessions.daemon_order import Order
from edgellm.sessions.journal import Journal
from edgellm.sessions.recover import recover_session
from edgellm.sessions.registry import Registry, SessionFiles, SessionRecord, write_record
from edgellm.sessions.story import (
    Begun,
    Ended,
    Line,
    Opened,
    Serves,
    Story,
    decoded,
    encoded,
    read_journal,
    told,
)

ORDER = Order(
    "amber", "tiny", "/run/amber", ("/ip4/10.0.0.1/tcp/1/p2p/x",), 60.0, port=8000, api_key="secret"
)


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions" / "amber.journal"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("edgellm.log.log_to", lambda: None)
    return Registry.of(default_paths())


def story_of(path: Path) -> Story:
    story = read_journal(path)
    assert story is not None
    return story


def test_it_is_for_its_owner_alone_and_has_the_whole_order(path: Path) -> None:
    Journal(path, ORDER).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert story_of(path).opened.order == ORDER


def test_what_ran_is_unfinished_and_what_ended_is_not(path: Path) -> None:
    clock = Clock()
    kept = Journal(path, ORDER, now=clock)
    kept.serves("other", ("alice", "bob"), spent_s=4.0)
    first, second = kept.begin("/v1/completions", "mine"), kept.begin("edgellm ask")
    kept.end(second, "finished")
    # As after a kill: nothing was closed.
    story = story_of(path)
    assert (story.model, story.serves and story.serves.hosts) == ("other", ("alice", "bob"))
    assert [(one.number, one.path, one.request_id) for one in story.running] == [
        (first, "/v1/completions", "mine")
    ]
    (lost,) = story.lost()
    assert (lost.request_id, lost.model, lost.at, lost.lost_at) == ("mine", "other", 1000.0, story.alive_at)
    assert replace(story, alive_at=900.0).lost()[0].lost_at == 1000.0


def test_who_asks_again_is_known_until_it_is_answered(path: Path) -> None:
    before = Journal(path, ORDER, now=Clock())
    before.begin("/v1/completions", "mine")
    before.begin("/v1/completions")
    kept = Journal(path, ORDER, story_of(path).lost())
    assert kept.left_by("") is None
    assert kept.left_by("other") is None
    left = kept.left_by("mine")
    assert left is not None
    assert left.at == 1000.0
    kept.end(kept.begin("/v1/completions", "mine"), "aborted")
    assert len(kept.unfinished) == 2
    kept.end(kept.begin("/v1/completions", "mine"), "finished")
    assert [one.request_id for one in kept.unfinished] == [""]
    assert story_of(path).lost() == kept.unfinished


@pytest.mark.parametrize("words", ["x" * 129, "two\nlines", "\x1b[31m"])
def test_ids_that_are_too_long_or_no_text_are_not_kept(words: str, path: Path) -> None:
    Journal(path, ORDER).begin("/v1/completions", words)
    assert story_of(path).running[0].request_id == ""


lines = st.lists(
    st.one_of(
        st.builds(
            Begun, st.integers(1, 5), st.just("/v1/messages"), st.text(max_size=9), st.just("m"), st.just(1.0)
        ),
        st.builds(Ended, st.integers(1, 5), st.sampled_from(("finished", "aborted", "failed"))),
        st.builds(Serves, st.text(max_size=5), st.just(("a", "b")), st.just(0.0), st.just(2.0)),
    ),
    max_size=12,
)


def tale(told_lines: list[Line]) -> Story | None:
    story: Story | None = None
    for line in told_lines:
        story = told(story, line)
    return story


@given(lines, st.data())
def test_torn_at_any_byte_it_tells_all_lines_before(rest: list[Line], data: st.DataObject) -> None:
    all_lines: list[Line] = [Opened(ORDER, 1.0), *rest]
    whole = b"".join(encoded(line) for line in all_lines)
    cut = data.draw(st.integers(0, len(whole)))
    garbage = data.draw(st.sampled_from((b"", b"\0" * 30, b"deadbeef {}", b"\xff\n\n")))
    complete, size = [], 0
    for line in all_lines:
        size += len(encoded(line))
        # The last byte of a line is its end; without it the line reads all the same.
        if size - 1 <= cut and not (garbage and size - 1 == cut):
            complete.append(line)
    assert list(decoded(whole[:cut] + garbage)) == complete


@given(lines)
def test_the_fewest_lines_tell_the_same(rest: list[Line]) -> None:
    story = tale([Opened(ORDER, 1.0), *rest])
    assert story is not None
    assert tale(list(journal.lines_of(story))) == story


@given(st.binary(max_size=300))
def test_any_bytes_are_read(data: bytes) -> None:
    assert list(decoded(data)) == []


def test_it_stays_small(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_LINES", 20)
    kept = Journal(path, ORDER)
    stays = kept.begin("/v1/completions", "stays")
    for _ in range(200):
        kept.end(kept.begin("/v1/completions"), "finished")
        kept.settle()
    assert len(path.read_bytes().splitlines()) <= 24
    assert [one.number for one in story_of(path).running] == [stays]
    kept.end(stays, "finished")
    assert story_of(path).running == ()
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_costs_lines_and_not_the_session(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Journal(path, ORDER)
    write = os.write
    room = 30

    def full(file: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:room])

    monkeypatch.setattr(os, "write", full)
    kept.begin("/v1/completions", "cut off")
    room = 0
    kept.begin("/v1/completions", "lost")
    kept.settle()
    assert story_of(path).running == (), "and what was there before is there"
    monkeypatch.setattr(os, "write", write)
    kept.begin("/v1/completions", "third")
    assert [one.request_id for one in story_of(path).running] == ["third"]
    kept.settle()
    assert [one.request_id for one in story_of(path).running] == ["cut off", "lost", "third"]


def test_it_is_whole_after_a_kill_at_any_instant(path: Path) -> None:
    program = f"""
import msgspec, sys, pathlib
from edgellm.sessions import journal
from edgellm.sessions.daemon_order import Order
journal.MAX_LINES = 50
kept = journal.Journal(pathlib.Path({str(path)!r}), Order("amber", "tiny", "", (), 1.0))
print("up", flush=True)
while True:
    kept.end(kept.begin("/v1/completions", "x" * 100), "finished")
    kept.settle()
"""
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"up\n"
            writer.kill()
        assert len(story_of(path).running) <= 1


def crashed(registry: Registry, *, pid: int = 0, lost: tuple[str, ...] = ("mine",)) -> SessionFiles:
    """A session whose daemon was killed, or is the process `pid`."""
    _, files = registry.reserve("amber")
    assert files.journal is not None
    started = psutil.Process(pid).create_time() if pid else 1.0
    write_record(files, SessionRecord("amber", "tiny", pid or os.getpid(), started, "ready"))
    kept = Journal(files.journal, replace_order(files))
    kept.serves("other", ("alice", "bob"))
    for request_id in lost:
        kept.begin("/v1/completions", request_id)
    kept.close()
    return files


def replace_order(files: SessionFiles) -> Order:
    return Order(
        "amber", "tiny", str(files.directory), ORDER.bootstrap, 60.0, port=8000, api_key="secret", owner_pid=7
    )


@pytest.mark.parametrize("rebooted", [False, True])
def test_one_that_crashed_is_listed_until_it_is_closed(
    rebooted: bool, registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    files = crashed(registry)
    if rebooted:
        SessionFiles(files.directory).record.unlink()
        files.directory.rmdir()
    (state,) = list_sessions(registry)
    assert state.has_crashed

    def run(*words: str) -> str:
        code = told_error(lambda: app(["session", *words], standalone_mode=False))
        out, err = capfd.readouterr()
        return f"{code} {out}{err}"

    listed = run("list")
    assert "amber crashed at " in listed
    assert "1 request was unfinished" in listed
    assert "edgellm session recover amber" in listed
    (entry,) = json.loads(run("list", "--json").removeprefix("0 "))
    assert (entry["state"], entry["crashed_at"]) == ("crashed", state.story and state.story.alive_at)
    assert (entry["model"], entry["endpoint"], entry["route"]) == (
        "other",
        "http://127.0.0.1:8000/v1",
        "alice → bob",
    )
    assert entry["unfinished"][0]["request_id"] == "mine"
    assert "secret" not in json.dumps(entry)
    shown = run("show", "amber")
    assert "/v1/completions mine" in shown
    asked = told_error(lambda: app(["ask", "Why?", "--session", "amber"], standalone_mode=False))
    assert asked == 1
    assert "session 'amber' crashed: 1 request was unfinished" in capfd.readouterr().err
    with pytest.raises(SessionError, match="named 'amber'"):
        registry.reserve("amber")
    assert run("close", "amber").startswith("0 ")
    assert registry.names() == ()
    assert not any(path for path in default_paths().journals.iterdir())


def recovered(registry: Registry, monkeypatch: pytest.MonkeyPatch, start: Callable[..., object]) -> Story:
    monkeypatch.setattr(recover, "start_session", start)
    return recover_session(registry, "amber", lambda line: None)


def test_it_comes_back_as_it_was(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed(registry)
    orders: list[Order] = []
    story = recovered(registry, monkeypatch, lambda registry, order, files, on_progress: orders.append(order))
    (order,) = orders
    assert (order.model, order.port, order.api_key, order.recovers, order.owner_pid) == (
        "other",
        8000,
        "secret",
        True,
        0,
    )
    assert order.bootstrap == ORDER.bootstrap
    assert order.spent_s == story.spent_s() >= 0
    assert len(story.lost()) == 1


def test_it_can_be_tried_again_when_it_does_not_come_back(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed(registry)

    def fail(registry: Registry, order: Order, files: SessionFiles, on_progress: object) -> None:
        registry.remove(order.name, keep_journal=order.recovers)
        raise UsageError("port 8000 of this machine cannot be used")

    for _ in range(2):
        with pytest.raises(UsageError, match="port 8000"):
            recovered(registry, monkeypatch, fail)
        assert session_state(registry, "amber").has_crashed


def test_one_that_runs_or_is_being_recovered_is_not_recovered(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed(registry, pid=os.getpid())
    with pytest.raises(SessionError, match="has not crashed"):
        recover_session(registry, "amber", lambda line: None)
    assert not session_state(registry, "amber").has_crashed
    registry.remove("amber")
    crashed(registry)
    with registry.reserve_again("amber"), pytest.raises(SessionError, match="another command recovers"):
        recover_session(registry, "amber", lambda line: None)
    with pytest.raises(SessionError, match="no session named"):
        recover_session(registry, "birch", lambda line: None)
    _, files = registry.reserve("birch")
    with pytest.raises(SessionError, match="has said nothing yet"):
        recover_session(registry, "birch", lambda line: None)
    assert files.directory.is_dir(), "what starts goes on"


def test_one_whose_journal_cannot_be_read_is_forgotten(registry: Registry) -> None:
    files = crashed(registry)
    assert files.journal is not None
    files.journal.write_bytes(b"\0" * 100)
    with pytest.raises(SessionError, match="left nothing"):
        recover_session(registry, "amber", lambda line: None)
    assert registry.names() == ()


def test_host_seconds_count_until_the_daemon_was_last_seen() -> None:
    story = Story(Opened(ORDER, 1.0), Serves("tiny", ("a", "b"), 10.0, 100.0), alive_at=130.0)
    assert story.spent_s() == 70.0
    assert replace(story, serves=None).spent_s() == 0.0
