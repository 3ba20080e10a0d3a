"""A session that stays in the foreground: one line that says how it is, and its end with Ctrl-C."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from rich.live import Live
from rich.markup import escape
from rich.text import Text

from edgellm.cli._output import errors, say
from edgellm.errors import SessionError
from edgellm.types.quantity import format_duration

if TYPE_CHECKING:
    from edgellm.sessions.registry import Registry
    from edgellm.wire.session_pb2 import Description

LOOK_S = 1.0
_ANSWER_S = 3.0


@dataclass(frozen=True, slots=True)
class Work:
    """What the session's engine has to do, at an instant of `time.monotonic`."""

    running: int
    waiting: int
    output_tokens: int
    """Since the engine was loaded."""
    at: float


def speed(before: Work | None, now: Work | None) -> float | None:
    """Tokens per second between two looks; None where they are not both there, or of different engines."""
    if before is None or now is None or now.output_tokens < before.output_tokens or now.at <= before.at:
        return None
    return (now.output_tokens - before.output_tokens) / (now.at - before.at)


def status(description: Description, work: Work | None, tok_s: float | None, now: float) -> str:
    """How a session is, in a line; `now` is an instant of `time.time`."""
    parts = [description.name, description.model, description.state]
    if description.detail:
        parts[-1] += f" ({description.detail})"
    if work is not None:
        parts.append(f"{work.running} running" + (f", {work.waiting} waiting" if work.waiting else ""))
    elif description.running_requests:
        parts.append(f"{description.running_requests} running")
    if tok_s is not None:
        parts.append(f"{tok_s:.0f} tok/s")
    if description.idle_expires_unix_ms:
        left_s = description.idle_expires_unix_ms / 1000 - now
        parts.append(f"closes in {format_duration(left_s)}")
    if description.max_cost_s:
        lent, most = format_duration(description.cost_s), format_duration(description.max_cost_s)
        parts.append(f"lent {lent} of {most}")
    if description.endpoint:
        parts.append(description.endpoint)
    return " · ".join(parts)


def stay(registry: Registry, name: str, on_open: Callable[[], None], *, quiet: bool) -> None:
    """Shows how an open session is until it has ended; Ctrl-C closes it, from the call of `on_open` on.

    Raises the error that the session broke with.
    """
    from edgellm.sessions.client import close_session

    try:
        on_open()
        reason = _followed(registry, name, quiet=quiet)
    # The second: the terminal is gone, and so is all that is written to it.
    except (KeyboardInterrupt, OSError):
        with suppress(OSError):
            if not quiet:
                say(f"closing {escape(name)} …")
        close_session(registry, name)
        reason = "you ended it"
    with suppress(OSError):
        if not quiet:
            say(f"closed {escape(name)}: {escape(reason)}")


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Whoever ends this process by SIGTERM, or by closing its terminal, has it end as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _followed(registry: Registry, name: str, *, quiet: bool) -> str:
    """Why the session has ended. Raises what it broke with."""
    from edgellm.sessions.client import gone, session_state

    line, reason = "", "another command closed it"
    told: object = None
    before: Work | None = None

    def shown() -> Text:
        return Text(line, no_wrap=True, overflow="ellipsis")

    moves = errors.is_terminal and not quiet
    with Live(get_renderable=shown, console=errors, transient=True) if moves else nullcontext():
        while True:
            try:
                state = session_state(registry, name)
            except SessionError:
                return reason
            described = state.description
            if described is None:
                if state.has_crashed or (state.record is not None and state.record.failure):
                    raise gone(state, registry.files(name))
                return reason
            if described.state == "closing":
                reason = described.detail
            work = work_of(described.api_socket)
            line = status(described, work, speed(before, work), time.time())
            before = work
            # Where lines stay, there is one for each thing that has happened.
            news = (described.model, described.state, described.detail, work and (work.running, work.waiting))
            if not moves and not quiet and news != told:
                say(escape(line))
                told = news
            time.sleep(LOOK_S)


def work_of(api_socket: str) -> Work | None:
    """What an engine has to do; None where it does not say."""
    if not api_socket:
        return None
    connection = _Connection(api_socket)
    try:
        connection.request("GET", "/edgellm/requests")
        answer = json.load(connection.getresponse())
        return Work(answer["running"], answer["waiting"], answer["output_tokens"], time.monotonic())
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return None
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    """To a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        """As the base class."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_ANSWER_S)
        self.sock.connect(self._path)
