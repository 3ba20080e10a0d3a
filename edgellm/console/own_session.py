"""The one session whose daemon a console is part of: others are not shown there, for who may use this one may not use all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from edgellm.console import views
from edgellm.console.sources import Answer, EngineSource, Event, NotKnown, NotOffered, SessionSource


class OwnSession:
    """`edgellm.console.sources.SessionSource`, of one name."""

    def __init__(self, sessions: SessionSource, name: str, close: Callable[[], None]) -> None:
        """`close` has the session end, and with it this console; nobody waits for that here."""
        self._sessions, self._name, self._close = sessions, name, close

    async def all(self) -> tuple[views.Session, ...]:
        return (await self._sessions.one(self._name),)

    async def one(self, name: str) -> views.Session:
        return await self._sessions.one(_own(name, self._name))

    async def open(self, wanted: views.NewSession) -> views.Session:
        raise NotOffered(
            "sessions are not opened from the console of a session", remedy="run `edgellm console`"
        )

    async def close(self, name: str) -> None:
        _own(name, self._name)
        self._close()

    async def swap(self, name: str, model: str) -> views.Session:
        return await self._sessions.swap(_own(name, self._name), model)

    @asynccontextmanager
    async def watch(self, name: str) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
        async with self._sessions.watch(_own(name, self._name)) as events:
            yield events


class OwnEngine:
    """`edgellm.console.sources.EngineSource`, of one session."""

    def __init__(self, engines: EngineSource, name: str) -> None:
        self._engines, self._name = engines, name

    def ask(self, name: str, body: dict[str, object]) -> AbstractAsyncContextManager[Answer]:
        return self._engines.ask(_own(name, self._name), body)

    async def timings(self, name: str, request_id: str) -> views.Timings:
        return await self._engines.timings(_own(name, self._name), request_id)


def _own(name: str, own: str) -> str:
    if name != own:
        raise NotKnown(
            f"this is the console of session {own!r} alone", remedy="run `edgellm console` for all of them"
        )
    return name
