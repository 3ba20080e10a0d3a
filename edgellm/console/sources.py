"""What the console shows and starts. Each source has one task; who makes the app brings them.

Each call may raise EdgeErrors; the API turns them into answers with a fitting status.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import trio

from edgellm.console import views
from edgellm.errors import EdgeError


class NotOffered(EdgeError):
    """What is asked for is not to be had from this console; another one may have it."""


class NotThere(EdgeError):
    """What is asked for does not exist in this version of the product, or of an engine."""


class NotKnown(EdgeError):
    """There is nothing of that name."""


class Conflict(EdgeError):
    """It is there already, or in a state that does not allow what is asked."""


class Busy(EdgeError):
    """As much as may run at once does."""


class Unavailable(EdgeError):
    """Not now; later perhaps."""


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event."""

    name: str
    data: views.View


Events: TypeAlias = AbstractAsyncContextManager[trio.MemoryReceiveChannel[Event]]
"""While it is entered, its channel gives what happens. It ends when nothing more can come."""


class SwarmSource(Protocol):
    async def current(self) -> views.Swarm:
        """The last look, or a first one."""

    def watch(self) -> Events:
        """A `snapshot`, and what changes from then on. Raises Busy where too many watch."""


class SessionSource(Protocol):
    async def all(self) -> tuple[views.Session, ...]:
        """By name."""

    async def one(self, name: str) -> views.Session:
        """Raises NotKnown."""

    async def open(self, wanted: views.NewSession) -> views.Session:
        """Begins to bring one up; returns at once. Raises UsageError, Conflict for a name that is taken, Busy."""

    async def close(self, name: str) -> None:
        """Returns when everything of it is gone. Raises NotKnown."""

    async def swap(self, name: str, model: str) -> views.Session:
        """Begins to put another model behind the session. Raises NotKnown, Conflict, Busy."""

    def watch(self, name: str) -> Events:
        """`progress` from its beginning on, `state` at once and whenever it is another. Raises NotKnown, Busy."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An engine's answer, as it comes."""

    status: int
    content_type: str
    request_id: str
    body: AsyncIterator[bytes]


class EngineSource(Protocol):
    def ask(self, name: str, body: dict[str, object]) -> AbstractAsyncContextManager[Answer]:
        """The answer of a session's engine to a chat; leaving the context frees its place in the engine.

        Raises NotKnown, Conflict for a session that is not ready, Busy, EngineError.
        """

    async def timings(self, name: str, request_id: str) -> views.Timings:
        """Raises NotKnown, NotThere where the engine keeps none."""


class HostSource(Protocol):
    @property
    def offered(self) -> bool:
        """Whether `start` can do anything but raise NotOffered."""

    def all(self) -> tuple[views.Host, ...]:
        """In the order in which they were started."""

    def one(self, host: str) -> views.Host:
        """Raises NotKnown."""

    async def start(self, wanted: views.NewHost) -> views.Host:
        """Raises NotOffered, Busy, UsageError."""

    async def stop(self, host: str) -> None:
        """Returns when its process has ended; one that has ended is forgotten. Raises NotKnown."""

    async def pause(self, host: str) -> views.Host:
        """It lends nothing until `resume`; running leases get what they get when it stops. Raises NotKnown, NetworkError."""

    async def resume(self, host: str) -> views.Host:
        """Raises NotKnown, NetworkError, UsageError for one that is about to end."""

    def log(self, host: str) -> tuple[str, ...]:
        """The last lines it said. Raises NotKnown."""


class MachineSource(Protocol):
    async def kv(self) -> views.Kv: ...

    async def doctor(self) -> views.Doctor: ...


@dataclass(frozen=True, slots=True)
class Sources:
    """All that one console needs."""

    swarm: SwarmSource
    sessions: SessionSource
    engines: EngineSource
    hosts: HostSource
    machine: MachineSource
    session: str | None = None
    """The session whose daemon this is; None: a console of its own."""
