"""What a session's journal tells: its lines, and what they add up to. Pure but for the reading of the file."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import msgspec

from edgellm.errors import SessionError
from edgellm.sessions.daemon_order import Order

MAX_UNFINISHED = 256
"""That are kept, the last ones."""
_CHECKSUM = 8


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    order: Order
    """With the port that it got."""
    at: float


class Serves(msgspec.Struct, frozen=True, tag="serves"):
    """A cluster answers from now on."""

    model: str
    hosts: tuple[str, ...]
    spent_s: float
    """Host-seconds that had been lent by then."""
    at: float


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    number: int
    path: str
    request_id: str
    """What its client calls it (`x-request-id`); "" where it does not."""
    model: str
    at: float


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    number: int
    how: str
    """"finished", "aborted" by its client, or "failed"."""


class Unfinished(msgspec.Struct, frozen=True, tag="unfinished"):
    """A request of a daemon that died."""

    path: str
    request_id: str
    model: str
    at: float
    lost_at: float


Line: TypeAlias = Opened | Serves | Begun | Ended | Unfinished


@dataclass(frozen=True, slots=True)
class Story:
    """What a journal tells."""

    opened: Opened
    serves: Serves | None = None
    running: tuple[Begun, ...] = ()
    unfinished: tuple[Unfinished, ...] = ()
    """Of daemons before, and not yet answered to a client that asked again."""
    alive_at: float = 0.0
    """When its daemon was last known to live."""

    @property
    def model(self) -> str:
        """The last one that was served, or would have been first."""
        return self.serves.model if self.serves else self.opened.order.model

    def lost(self) -> tuple[Unfinished, ...]:
        """All that is unfinished if its daemon is dead."""
        died = tuple(
            # The file's time is coarser than a clock.
            Unfinished(one.path, one.request_id, one.model, one.at, max(one.at, self.alive_at))
            for one in self.running
        )
        return (*self.unfinished, *died)[-MAX_UNFINISHED:]

    def spent_s(self) -> float:
        """Host-seconds that had been lent when its daemon was last known to live."""
        if self.serves is None:
            return self.opened.order.spent_s
        return self.serves.spent_s + len(self.serves.hosts) * max(0.0, self.alive_at - self.serves.at)


def told(story: Story | None, line: Line) -> Story | None:
    """The story with one more line; None where none has begun. Pure."""
    if isinstance(line, Opened):
        return Story(line, unfinished=story.unfinished if story else ())
    if story is None:
        return None
    match line:
        case Serves():
            return replace(story, serves=line)
        case Begun():
            return replace(story, running=(*story.running, line))
        case Unfinished():
            return replace(story, unfinished=(*story.unfinished, line)[-MAX_UNFINISHED:])
        case Ended():
            ended = [one for one in story.running if one.number == line.number]
            running = tuple(one for one in story.running if one.number != line.number)
            again = {one.request_id for one in ended if one.request_id and line.how == "finished"}
            unfinished = tuple(one for one in story.unfinished if one.request_id not in again)
            return replace(story, running=running, unfinished=unfinished)


def lines_of(story: Story) -> tuple[Line, ...]:
    """The fewest lines that tell it."""
    serves = (story.serves,) if story.serves else ()
    return (story.opened, *serves, *story.unfinished, *story.running)


def encoded(line: Line) -> bytes:
    data = msgspec.json.encode(line)
    return b"%08x %s\n" % (zlib.crc32(data), data)


def decoded(data: bytes) -> Iterable[Line]:
    """What can be read of a journal's bytes. A line that was torn, or that a newer version wrote, is left out."""
    for text in data.split(b"\n"):
        body = text[_CHECKSUM + 1 :]
        if text[:_CHECKSUM] != b"%08x" % zlib.crc32(body):
            continue
        try:
            line: Line = msgspec.json.decode(body, type=Line)
        except msgspec.MsgspecError:
            continue
        yield line


def read_journal(path: Path | None) -> Story | None:
    """What a session's journal tells; None where there is none that can be read."""
    if path is None:
        return None
    try:
        data, alive_at = path.read_bytes(), path.stat().st_mtime
    except OSError:
        return None
    story: Story | None = None
    for line in decoded(data):
        story = told(story, line)
    return replace(story, alive_at=alive_at) if story else None


def lost_requests(story: Story) -> str:
    """How many requests a session that crashed left unfinished, for people."""
    count = len(story.lost())
    return f"{count or 'no'} request{'' if count == 1 else 's'} {'was' if count == 1 else 'were'} unfinished"


def crashed(name: str, story: Story) -> SessionError:
    """What there is to say of a session that has."""
    return SessionError(
        f"session {name!r} crashed: {lost_requests(story)}",
        remedy=f"bring it back: edgellm session recover {name}",
    )
