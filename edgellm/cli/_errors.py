"""The one place that turns errors into lines on stderr and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from edgellm.cli._output import say
from edgellm.errors import EdgeError, UsageError, unwrapped

INTERRUPTED = 130
"""128 + SIGINT, as shells expect."""
TRACEBACK = "EDGELLM_TRACEBACK"
# What the command line's parser raises. Typer carries a copy of click of its own, whose base class has no public name.
_ParserError: type[Exception] = typer.BadParameter.__mro__[1]


def told(run: Callable[[], object]) -> int:
    """Runs a command; its exit code. What went wrong is one line on stderr, and a second that says what to do.

    A traceback appears only when the environment variable EDGELLM_TRACEBACK is set, or for a defect of ours.
    """
    try:
        with unwrapped():
            status = run()
    except EdgeError as error:
        return tell(error)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except typer.Exit as leave:
        return leave.exit_code
    except _ParserError as error:
        return _tell_usage(error)
    except BrokenPipeError:
        # Whoever read our output has left; so do we, quietly, as `head` expects of its left-hand side.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if status == INTERRUPTED:
        say("[yellow]interrupted[/]")
    return status if isinstance(status, int) else 0


def _tell_usage(error: Any) -> int:
    message = error.format_message()
    if "\n" in message or not message:
        # No error: a command that has only sub-commands shows its help.
        error.show()
        return UsageError.exit_code
    command = error.ctx.command_path if error.ctx else "edgellm"
    return tell(UsageError(message.rstrip("."), remedy=f"see `{command} --help`"))


def tell(error: EdgeError) -> int:
    """Says what happened and what to do, in a line each; the exit code that goes with it."""
    say(f"[bold red]error:[/] {_plain(str(error))}")
    if error.remedy:
        say(f"[bold]try:[/]   {_plain(error.remedy)}")
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    return error.exit_code


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))
