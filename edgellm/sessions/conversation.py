"""What was said in a chat, and what a line that begins with a slash means. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from edgellm.errors import UsageError
from edgellm.types.request import Message

COMMANDS = {
    "/system": "TEXT  what the model is to keep to; alone: show it; /system - takes it away",
    "/clear": "forget what was said",
    "/undo": "forget the last question and its answer",
    "/save": "FILE  write the chat as Markdown",
    "/stats": "figures of the last answer and of the chat",
    "/help": "this list",
    "/quit": "leave; the session stays open",
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Questions and answers in turns."""

    system: str = ""
    turns: tuple[Message, ...] = ()

    def asking(self, question: str) -> tuple[Message, ...]:
        """All that the model is to see for one more question."""
        system = (Message("system", self.system),) if self.system else ()
        return (*system, *self.turns, Message("user", question))

    def answered(self, question: str, answer: str) -> Conversation:
        """With one more turn. An answer that was interrupted counts as far as it came."""
        return replace(self, turns=(*self.turns, Message("user", question), Message("assistant", answer)))

    def undone(self) -> Conversation:
        return replace(self, turns=self.turns[:-2])

    def cleared(self) -> Conversation:
        """The system prompt stays."""
        return replace(self, turns=())

    def markdown(self, model: str) -> str:
        """For a file."""
        parts = [f"# A chat with {model}"]
        if self.system:
            parts.append(f"*System:* {self.system}")
        names = {"user": "You", "assistant": model}
        parts += [f"**{names[turn.role]}**\n\n{turn.content.strip()}" for turn in self.turns]
        return "\n\n".join(parts) + "\n"


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    """One of `COMMANDS`."""
    argument: str = ""


Said: TypeAlias = Command | str


def understood(line: str) -> Said:
    """A command, or words for the model. A slash that shall reach the model is written twice. Raises UsageError."""
    words = line.strip()
    if words.startswith("//"):
        return words[1:]
    if not words.startswith("/"):
        return words
    name, _, argument = words.partition(" ")
    if name == "/exit":
        name = "/quit"
    if name not in COMMANDS:
        raise UsageError(
            f"there is no command {name[:40]!r}", remedy=f"there are {', '.join(COMMANDS)}; // begins a text"
        )
    return Command(name, argument.strip())
