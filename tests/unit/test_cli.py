"""The command line without a swarm: what it imports, what it refuses and how it says so."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from edgellm.cli import app
from edgellm.cli._bringup import AnswerClock, BringUpView, Hop, bar, summary, timeline
from edgellm.cli._errors import INTERRUPTED, told
from edgellm.cli.models import entries_of
from edgellm.cli.peers import report
from edgellm.discovery.collect import Sighting
from edgellm.errors import DiscoveryError, EdgeError, NetworkError, UsageError
from edgellm.requester.timeline import Span
from edgellm.types.quantity import parse_duration
from tests.unit.samples import GIB, advert

HEAVY = ("grpc", "libp2p", "torch", "ray", "vllm", "transformers", "tokenizers", "huggingface_hub", "trio")
HELP_CPU_S = 1.0
"""Twice what it takes: the machines of CI are slow and shared."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    # It is set for the whole process, and would outlive the test.
    monkeypatch.setattr("edgellm.log.log_to", lambda: None)
    monkeypatch.delenv("EDGELLM_BOOTSTRAP", raising=False)
    monkeypatch.delenv("EDGELLM_SWARM", raising=False)
    monkeypatch.delenv("EDGELLM_TRACEBACK", raising=False)
    return tmp_path


def edgellm(*arguments: str) -> int:
    return told(lambda: app(list(arguments), standalone_mode=False))


def test_the_command_line_imports_nothing_heavy() -> None:
    program = f"import sys, edgellm.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_quick() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "edgellm", "--help"], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    for verb in ("ask", "host", "session", "swarm", "peers", "models", "doctor", "bootstrap", "demo"):
        assert verb in done.stdout
    assert used < HELP_CPU_S


@pytest.mark.parametrize(
    ("arguments", "error", "remedy"),
    [
        (["ask", "hello"], "say either --model or --session", "--model MODEL"),
        (["ask", "hello", "-m", "tiny", "-s", "amber"], "say either --model or --session", "--model MODEL"),
        (["ask", "", "--model", "tiny"], "the prompt is empty", "say something"),
        (["ask", " \n", "--session", "amber"], "the prompt is empty", "say something"),
        (["ask", "hello", "--model", "tiny"], "no peer of the swarm is known yet", "--bootstrap ADDRESS"),
        (["peers"], "no peer of the swarm is known yet", "--bootstrap ADDRESS"),
        (["models"], "no peer of the swarm is known yet", "--bootstrap ADDRESS"),
        (["peers", "--bootstrap", "10.0.0.1:4001"], "is no address of a peer", "/ip4/"),
        (
            ["ask", "hi", "-m", "tiny", "--raw", "--system", "be brief"],
            "exclude each other",
            "into the prompt",
        ),
        (["ask", "hi", "-m", "tiny", "--max-tokens", "0"], "--max-tokens", "ask --help"),
        (["ask", "hi", "-m", "tiny", "--temperature", "warm"], "--temperature", "ask --help"),
        (["ask", "hi", "-m", "tiny", "--colour"], "--colour", "ask --help"),
        (
            ["host", "-m", "tiny", "--ipfs", "/ip4/127.0.0.1/tcp/5001", "--kv-quota", "1GiB"],
            "with --ipfs a daemon keeps the blocks",
            "StorageMax",
        ),
        (
            ["ask", "hi", "-s", "amber", "--disaggregate", "auto"],
            "a question with clusters of its own",
            "--model instead of --session",
        ),
        (
            ["ask", "hi", "-m", "tiny", "--disaggregate", "always", "--no-kv-share"],
            "--disaggregate always and --no-kv-share exclude each other",
            "leave out one of them",
        ),
        (
            ["ask", "hi", "-m", "tiny", "--disaggregate", "auto", "--network", "direct"],
            "--disaggregate auto and --network direct exclude each other",
            "leave out one of them",
        ),
        (["ask", "hi", "-m", "tiny", "--disaggregate", "maybe"], "--disaggregate", "ask --help"),
        (["session", "open", "-m", "tiny", "--api-key", ""], "an API key has", "EDGELLM_API_KEY"),
        (["session", "open", "-m", "tiny", "--api-key", "two words"], "an API key has", "EDGELLM_API_KEY"),
        (["session", "open", "-m", "tiny", "--port", "70000"], "--port", "session open --help"),
        (["nonsense"], "nonsense", "--help"),
        (["host", "-m", "tiny"], "nobody may lease this machine yet", "--allow-anyone"),
        (["host", "-m", "tiny", "--allow-members"], "needs a private swarm", "--swarm NAME"),
        (["host", "-m", "tiny", "--allow", "bob"], "'bob' is no peer id", "12D3Koo"),
        (["peers", "--swarm", "lab"], "in no swarm called 'lab'", "edgellm swarm join"),
        (["swarm", "create", "open"], "no name for a swarm", "small letters"),
        (["swarm", "invite"], "in no private swarm", "edgellm swarm create"),
    ],
)
def test_what_cannot_be_is_two_lines_and_status_2(
    arguments: list[str], error: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgellm(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith("try: ")
    assert remedy in second


def test_a_session_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert edgellm("ask", "hello", "--session", "amber") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: there is no session named 'amber'",
        "try:   sessions: none is open",
    ]


def test_a_name_cannot_leave_the_directory_of_sessions(capsys: pytest.CaptureFixture[str]) -> None:
    assert edgellm("ask", "hello", "--session", "../../state") == 1
    assert "there is no session" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("wrong"), 2),
        (DiscoveryError("nobody"), 1),
        (KeyboardInterrupt(), INTERRUPTED),
        (ExceptionGroup("tasks", [ExceptionGroup("deeper", [NetworkError("gone")])]), 1),
    ],
)
def test_exit_codes(error: BaseException, status: int) -> None:
    def fail() -> None:
        raise error

    assert told(fail) == status


def test_an_error_is_one_line_and_its_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise EdgeError("peer [bold]mallory[/] said\n  two lines", remedy="do\nthis")

    assert told(fail) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: peer [bold]mallory[/] said two lines",
        "try:   do this",
    ]


def test_a_defect_of_ours_is_not_hidden() -> None:
    def fail() -> None:
        raise ExceptionGroup("tasks", [NetworkError("gone"), ValueError("a defect")])

    with pytest.raises(ExceptionGroup):
        told(fail)


def test_in_a_pipe_each_phase_is_a_line() -> None:
    out = io.StringIO()
    with BringUpView(Console(file=out, width=200)) as view:
        view.note("", "discover", "tiny")
        view.note("al[i]ce", "joined")
    lines = out.getvalue().splitlines()
    assert [line.split("s  ", 1)[1].split() for line in lines] == [
        ["here", "discover", "tiny"],
        ["al[i]ce", "joined"],
    ]
    assert "\x1b" not in out.getvalue()


def test_a_quiet_view_says_nothing() -> None:
    out = io.StringIO()
    with BringUpView(Console(file=out), quiet=True) as view:
        view.note("", "discover")
    assert out.getvalue() == ""


def test_the_summary() -> None:
    clock = AnswerClock(begun=10.0, first=10.5, last=12.5, tokens=21)
    route = (Hop("alice", "peer-a", 0, 5), Hop("bob", "peer-b", 5, 16))
    assert summary(clock, route, bring_up_s=29.04) == (
        "TTFT 0.50 s · bring-up 29.0 s · 10.0 tok/s · 21 tokens · alice layers 0-4 → bob layers 5-15"
    )


def test_a_time_line_is_a_line_for_each_step() -> None:
    out = io.StringIO()
    spans = (
        Span("bring-up to decode", ("bob",), 0.0, 12.0),
        Span("prefill", ("al[i]ce", "carol"), 12.5, 16.0, "2,000 prompt tokens"),
        Span("decode", ("bob",), 24.0, 24.0),
    )
    Console(file=out, width=200).print(timeline(spans))
    title, columns, *lines = (line.rstrip() for line in out.getvalue().splitlines())
    assert title.split() == ["time", "line"]
    assert columns.split() == ["FROM", "TO", "STEP", "HOSTS"]
    fields = [line.split(maxsplit=5) for line in lines]
    assert [field[5] for field in fields] == [
        "bring-up to decode  bob",
        "prefill             al[i]ce + carol  2,000 prompt tokens",
        "decode              bob",
    ]
    assert [field[4] for field in fields] == [
        "█" * 16 + "·" * 16,
        "·" * 16 + "█" * 5 + "·" * 11,
        "·" * 31 + "█",
    ]
    assert [field[:4] for field in fields[1:]] == [["12.5", "s", "16.0", "s"], ["24.0", "s", "24.0", "s"]]


@pytest.mark.parametrize(
    ("begin", "end"), [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5), (0.99, 1.0), (0.01, 0.02)]
)
def test_a_bar_has_always_the_same_length_and_something_in_it(begin: float, end: float) -> None:
    assert len(bar(begin, end)) == 32
    assert "█" in bar(begin, end)


@pytest.mark.parametrize(
    ("clock", "text"),
    [
        (AnswerClock(begun=1.0), "0 tokens · alice layers 0-7"),
        (AnswerClock(begun=1.0, first=2.0, last=2.0, tokens=1), "TTFT 1.00 s · 1 token · alice layers 0-7"),
        # All in one piece: there is no time between tokens to divide by.
        (AnswerClock(begun=1.0, first=2.0, last=2.0, tokens=4), "TTFT 1.00 s · 4 tokens · alice layers 0-7"),
    ],
)
def test_the_summary_claims_no_rate_that_was_not_measured(clock: AnswerClock, text: str) -> None:
    assert summary(clock, (Hop("alice", "peer-a", 0, 8),), bring_up_s=None) == text


def test_peers_as_json() -> None:
    shown = json.loads(json.dumps(report(Sighting(advert(), 0.004))))
    assert shown["name"] == "alice"
    assert shown["free_memory_bytes"] == 4 * GIB
    assert [device["free"] for device in shown["devices"]] == [True]
    assert shown["engine"]["versions"]["ray"] == "2.60.0"
    assert shown["models"][0]["name"] == "tiny"
    assert shown["round_trip_s"] == 0.004


def test_models_are_listed_once_for_each_version() -> None:
    alice, bob, carol = (Sighting(advert(peer=name, name=name), 0.1) for name in ("alice", "bob", "carol"))
    newer = replace(carol.advert.models[0], digest="cd" * 32, layers=9)
    carol = Sighting(replace(carol.advert, models=(newer,)), 0.1)
    entries = entries_of((alice, carol, bob))
    assert [(entry.name, entry.digest[:2], entry.hosts) for entry in entries] == [
        ("tiny", "ab", ("alice", "bob")),
        ("tiny", "cd", ("carol",)),
    ]
    assert [entry.layers for entry in entries] == [8, 9]
    assert entries[0].free_memory_bytes == 8 * GIB
    assert entries_of(()) == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("1.5m", 90), ("45", 45), ("0", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5m", "5d", "1e3", "nan", "inf", " 5m", "5 m", "9" * 400])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration"):
        parse_duration(text)


def test_a_duration_has_an_end() -> None:
    assert parse_duration("87600h") == 10 * 365 * 86400
    with pytest.raises(UsageError, match="longer than 10 years") as caught:
        parse_duration("87601h")
    assert caught.value.remedy == "0 means no limit"
