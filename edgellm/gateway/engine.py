"""A connection to the API that the engine serves in the head's cell, for one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import h11
import trio

from edgellm.gateway.chunks import Chunks
from edgellm.gateway.client import Client

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

TAKE_S = 60.0
"""How long the engine may not read its request."""
_PART_BYTES = 64 << 10
_ASKED = frozenset(
    (b"content-type", b"accept", b"user-agent", b"x-request-id", b"anthropic-version", b"anthropic-beta")
)
"""Headers that the engine gets. Keys, cookies and origins are for this endpoint; others would change how it schedules."""
_ANSWERED = frozenset(
    (
        b"content-type",
        b"content-length",
        b"transfer-encoding",
        b"cache-control",
        b"x-request-id",
        b"server-timing",
        b"retry-after",
    )
)
"""Headers that clients get from the engine. Cookies of 127.0.0.1 would reach every port of it."""


_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"expect", b"te", b"trailer", b"upgrade", b"proxy-connection")
)
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))


def _to_engine(name: bytes) -> bool:
    return name in _ASKED


def _from_engine(name: bytes) -> bool:
    return name in _ANSWERED


def _to_console(name: bytes) -> bool:
    # It sees for itself for which host and page it is asked, and by whom.
    return name not in _HOP_BY_HOP and name not in _FRAMING


def _from_console(name: bytes) -> bool:
    return name not in _HOP_BY_HOP


@dataclass(frozen=True, slots=True)
class Passing:
    """Which headers go through, by their names in lower case."""

    asked: Callable[[bytes], bool]
    answered: Callable[[bytes], bool]
    own: Headers = ()


ENGINE = Passing(_to_engine, _from_engine, ((b"host", b"engine"),))
CONSOLE = Passing(_to_console, _from_console)


class BrokenOff(Exception):
    """The engine did."""


class EngineConnection:
    """The connection to the engine's API, for one request."""

    def __init__(self, stream: trio.SocketStream, passing: Passing = ENGINE) -> None:
        self._stream = stream
        self._passing = passing
        self._http = h11.Connection(h11.CLIENT)
        self.streams_events = False
        self.chunks: Chunks | None = None
        """Of an answer whose head only has been passed on: what comes next are chunks, as they are."""

    def fileno(self) -> int:
        fd: int = self._stream.socket.fileno()
        return fd

    async def ask(self, request: h11.Request, body: bytes) -> None:
        """Sends the request. Raises BrokenOff where the engine does not take it."""
        passing = self._passing
        headers = [
            (bytes(name), bytes(value)) for name, value in request.headers if passing.asked(bytes(name))
        ]
        own = [*passing.own, (b"connection", b"close")]
        if body or request.method not in (b"GET", b"HEAD"):
            own.append((b"content-length", str(len(body)).encode()))
        asked = h11.Request(method=request.method, target=request.target, headers=[*own, *headers])
        data = b"".join(
            self._http.send(event) or b"" for event in (asked, h11.Data(data=body), h11.EndOfMessage())
        )
        try:
            with trio.fail_after(TAKE_S):
                await self._stream.send_all(data)
        except trio.TooSlowError as error:
            raise BrokenOff from error
        except trio.BrokenResourceError:
            pass  # it may have answered before it had read everything

    async def answer(self, client: Client, added: Callable[[], Headers]) -> None:
        """Passes the answer on, with headers of ours in place of its own. Of a chunked one the beginning, and sets `chunks`.

        Raises BrokenOff where the engine does not end it.
        """
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                headers = [
                    (bytes(name), bytes(value))
                    for name, value in event.headers
                    if self._passing.answered(bytes(name))
                ]
                self.streams_events = any(
                    name == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in headers
                )
                own = added()
                names = {name for name, _ in own}
                passed = [(name, value) for name, value in headers if name not in names]
                await client.send(h11.Response(status_code=event.status_code, headers=[*passed, *own]))
                if (b"transfer-encoding", b"chunked") in event.headers and client.takes_chunks:
                    await self._begin_chunks(client)
                    return
            elif isinstance(event, h11.Data):
                await client.send(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await client.send(h11.EndOfMessage())
                return
            elif isinstance(event, h11.ConnectionClosed):
                raise BrokenOff

    async def _begin_chunks(self, client: Client) -> None:
        self.chunks = Chunks()
        came, _ = self._http.trailing_data
        if ready := self.chunks.take(came):
            await client.send_raw(ready)
        if self.chunks.broken:
            raise BrokenOff

    async def _next(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive_some(_PART_BYTES))
        except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
            raise BrokenOff from error
        return event
