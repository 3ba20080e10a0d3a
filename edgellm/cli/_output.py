"""Where output goes: answers and tables to stdout, everything else to stderr."""

from __future__ import annotations

import sys

from rich.console import Console

errors = Console(stderr=True, highlight=False, soft_wrap=True)
tables = Console(highlight=False)


def say(line: str) -> None:
    """A line for the user, in rich's markup, on stderr."""
    errors.print(line)


def write_answer(text: str) -> None:
    """A piece of an answer, on stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
