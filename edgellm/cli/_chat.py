"""A chat in the terminal with an open session: lines in, answers out, commands with a slash."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.markup import escape

from edgellm.cli._bringup import AnswerClock
from edgellm.cli._errors import tell
from edgellm.cli._output import say, write_answer
from edgellm.engine.question import piece_from_wire, question_to_wire
from edgellm.errors import EdgeError, UsageError
from edgellm.sessions.client import ask_session
from edgellm.sessions.conversation import COMMANDS, Command, Conversation, understood
from edgellm.sessions.registry import Registry
from edgellm.types.request import Question, Sampling

ReadLine = Callable[[], str]
"""The next thing that the user says. Raises EOFError at the end, KeyboardInterrupt at Ctrl-C."""


@dataclass
class Chat:
    registry: Registry
    session: str
    model: str
    sampling: Sampling
    conversation: Conversation = field(default_factory=Conversation)
    last: AnswerClock | None = None
    tokens: int = 0
    """Of all answers."""

    def run(self, read: ReadLine) -> None:
        """Until the user leaves. What goes wrong with one answer is told, and the chat goes on."""
        while True:
            try:
                said = understood(read())
            except (EOFError, KeyboardInterrupt):
                return
            except UsageError as error:
                tell(error)
                continue
            if isinstance(said, Command):
                if said.name == "/quit":
                    return
                self._obey(said)
            elif said:
                self._ask(said)

    def _ask(self, question: str) -> None:
        asked = Question(messages=self.conversation.asking(question), sampling=self.sampling)
        clock, text = AnswerClock(), ""
        request = question_to_wire(asked, secrets.token_hex(8))
        try:
            for event in ask_session(self.registry, self.session, request):
                piece = piece_from_wire(event)
                clock.count(len(piece.token_ids))
                text += piece.text
                write_answer(piece.text)
        except KeyboardInterrupt:
            say("\n[dim]stopped[/]")
        except EdgeError as error:
            write_answer("\n" if text else "")
            tell(error)
            if not text:
                return
        if text and not text.endswith("\n"):
            write_answer("\n")
        self.conversation = self.conversation.answered(question, text)
        self.last = clock
        self.tokens += clock.tokens

    def _obey(self, command: Command) -> None:
        match command.name:
            case "/help":
                for name, what in COMMANDS.items():
                    say(f"[bold]{name}[/] {escape(what)}")
            case "/system" if not command.argument:
                say(escape(self.conversation.system) or "[dim]none[/]")
            case "/system":
                system = "" if command.argument == "-" else command.argument
                self.conversation = Conversation(system, self.conversation.turns)
            case "/clear":
                self.conversation = self.conversation.cleared()
                say("[dim]forgotten[/]")
            case "/undo":
                self.conversation = self.conversation.undone()
                say(f"[dim]{len(self.conversation.turns) // 2} questions are left[/]")
            case "/save":
                self._save(command.argument)
            case "/stats":
                self._stats()

    def _save(self, name: str) -> None:
        if not name:
            tell(UsageError("/save needs a file", remedy="/save chat.md"))
            return
        path = Path(name).expanduser()
        try:
            # Never over something that is there.
            with path.open("x") as file:
                file.write(self.conversation.markdown(self.model))
        except OSError as error:
            tell(UsageError(f"{path} cannot be written: {error.strerror}", remedy="choose another name"))
            return
        say(f"[dim]saved as {escape(str(path))}[/]")

    def _stats(self) -> None:
        if self.last is None:
            say("[dim]nothing was asked yet[/]")
            return
        parts = [f"{self.last.tokens} token{'' if self.last.tokens == 1 else 's'}"]
        if self.last.ttft_s is not None:
            parts.insert(0, f"TTFT {self.last.ttft_s:.2f} s")
        if self.last.decode_tok_s is not None:
            parts.append(f"{self.last.decode_tok_s:.1f} tok/s")
        say(f"last answer: {' · '.join(parts)}")
        say(f"the chat: {len(self.conversation.turns) // 2} questions, {self.tokens} tokens of answers")


@contextmanager
def lines(history: Path) -> Iterator[ReadLine]:
    """Lines of the terminal, with a history and several lines where wanted; of a pipe, each line is said by itself."""
    if not sys.stdin.isatty():
        yield _piped
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history.touch(mode=0o600)
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)), multiline=True, key_bindings=keys
    )
    yield lambda: session.prompt("> ", prompt_continuation="  ")


def _piped() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
