"""A chat in the terminal: turns, commands, and what goes wrong in between."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import grpc
import pytest

from edgellm.cli import app
from edgellm.cli._errors import told
from edgellm.errors import UsageError
from edgellm.sessions.conversation import COMMANDS, Command, Conversation, understood
from edgellm.sessions.registry import Registry
from edgellm.types.request import Message
from tests.unit import test_sessions
from tests.unit.test_sessions import daemon

registry = test_sessions.registry


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the user types, line by line."""
    lines = io.StringIO()
    monkeypatch.setattr(sys, "stdin", lines)
    return lines


def chat(typed: io.StringIO, *lines: str) -> int:
    typed.write("\n".join(lines) + "\n")
    typed.seek(0)
    return told(lambda: app(["session", "chat", "amber"], standalone_mode=False))


def test_each_question_has_the_turns_before_it() -> None:
    talk = Conversation("be brief").answered("one", "1").answered("two", "2")
    assert [(turn.role, turn.content) for turn in talk.asking("three")] == [
        ("system", "be brief"),
        ("user", "one"),
        ("assistant", "1"),
        ("user", "two"),
        ("assistant", "2"),
        ("user", "three"),
    ]
    assert talk.undone().turns == talk.turns[:2]
    assert talk.cleared() == Conversation("be brief")
    assert Conversation().undone() == Conversation()
    assert Conversation().asking("a") == (Message("user", "a"),)


def test_a_chat_can_be_read_afterwards() -> None:
    talk = Conversation("be brief").answered("why?", " because \n")
    assert talk.markdown("tiny") == (
        "# A chat with tiny\n\n*System:* be brief\n\n**You**\n\nwhy?\n\n**tiny**\n\nbecause\n"
    )


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("why\n", "why"),
        ("  \n", ""),
        ("//etc/passwd is what?", "/etc/passwd is what?"),
        ("/save  a b.md \n", Command("/save", "a b.md")),
        ("/exit", Command("/quit")),
        ("/stats", Command("/stats")),
    ],
)
def test_what_a_line_means(line: str, meant: object) -> None:
    assert understood(line) == meant


def test_a_command_that_is_none_lists_those_that_are() -> None:
    with pytest.raises(UsageError, match="/sing") as raised:
        understood("/sing loudly")
    assert all(name in str(raised.value.remedy) for name in COMMANDS)


def test_a_whole_chat(
    registry: Registry, typed: io.StringIO, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chat.md"
    with daemon(registry) as (serving, _):
        lines = (
            "first question",
            "/system be kind",
            "second",
            f"/save {file}",
            f"/save {file}",
            "/stats",
            "/sing",
            "/quit",
            "no",
        )
        assert chat(typed, *lines) == 0
    said = [[(turn.role, turn.content) for turn in asked.chat.messages] for asked in serving.asked]
    # The engine of the test says what it hears.
    assert said == [
        [("user", "first question")],
        [
            ("system", "be kind"),
            ("user", "first question"),
            ("assistant", "first question"),
            ("user", "second"),
        ],
    ]
    assert "**You**\n\nsecond" in file.read_text()
    out, err = capfd.readouterr()
    assert out == "first question\nsecond\n"
    assert "File exists" in err
    assert "2 questions" in err
    assert "no command '/sing'" in err


def test_what_goes_wrong_with_one_answer_does_not_end_the_chat(
    registry: Registry, typed: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    failure = (grpc.StatusCode.INVALID_ARGUMENT, "the prompt has 9 tokens, but the context holds 3")
    with daemon(registry, failure=failure) as (serving, _):
        assert chat(typed, "one", "two") == 0
    err = capfd.readouterr().err
    assert err.count("the context holds 3") == 2
    # An answer counts as far as it came.
    assert [len(asked.chat.messages) for asked in serving.asked] == [1, 3]


def test_a_session_that_is_not_there(registry: Registry, typed: io.StringIO) -> None:
    assert chat(typed, "one") == 1
