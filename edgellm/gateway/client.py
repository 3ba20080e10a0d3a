"""A connection of somebody who asks a session's endpoint: its requests come whole, answers go out as they are made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import h11
import trio

from edgellm.gateway.guard import MAX_BODY_BYTES, Refusal

MAX_HEAD_BYTES = 32 << 10
HEAD_S = 15.0
"""For a request's head, once its first byte is there."""
KEPT_S = 75.0
"""How long a connection stays between two requests."""
STALL_S = 60.0
"""How long a client may not read its answer."""
LINGER_S = 3.0
"""How long what a refused client still sends is read, so that it reads the refusal and not of a broken connection."""
_PART_BYTES = 64 << 10


class Client:
    """A connection of somebody who asks."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._method = b""
        self.is_gone = False
        self.status = 0
        """Of the last answer that was begun."""

    def fileno(self) -> int:
        fd: int = self._stream.socket.fileno()
        return fd

    @property
    def address(self) -> tuple[str, int]:
        """Where it is."""
        host, port = self._stream.socket.getpeername()[:2]
        return str(host), int(port)

    @property
    def takes_chunks(self) -> bool:
        """Whether the answer to this request can be sent in chunks."""
        return self._http.their_http_version == b"1.1" and self._method != b"HEAD"

    async def request(self) -> h11.Request | None:
        """The next one; None where none comes. Raises h11.RemoteProtocolError, TooSlowError."""
        event = self._http.next_event()
        if event is h11.NEED_DATA:
            with trio.move_on_after(KEPT_S) as kept:
                await self._receive()
            if kept.cancelled_caught:
                return None
            with trio.fail_after(HEAD_S):
                event = await self._next()
        if not isinstance(event, h11.Request):
            return None
        self._method, self.status = bytes(event.method), 0
        return event

    async def body(self) -> bytes | None:
        """The next part of a request's body; None at its end. Raises h11.RemoteProtocolError."""
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        event = await self._next()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return None
        raise h11.RemoteProtocolError("a request that ended in the middle")

    @asynccontextmanager
    async def while_it_stays(self) -> AsyncIterator[None]:
        """Leaves the context early, with `is_gone`, when the client closes its side.

        A request that it sends meanwhile is kept, up to a head's length.
        """
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await self._gone()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            yield
            nursery.cancel_scope.cancel()

    async def _gone(self) -> None:
        kept = 0
        while kept <= MAX_HEAD_BYTES:
            try:
                data = await self._stream.receive_some(_PART_BYTES)
            except trio.BrokenResourceError:  # it closed with something of the answer unread
                data = b""
            self._http.receive_data(data)
            if not data:
                self.is_gone = True
                return
            kept += len(data)
        await trio.sleep_forever()

    async def send(self, event: h11.Event) -> None:
        """Raises TooSlowError where the client does not read."""
        with trio.fail_after(STALL_S):
            await self._send(event)

    async def send_raw(self, chunks: bytes) -> None:
        """Of an answer that has begun. Raises TooSlowError where the client does not read."""
        with trio.fail_after(STALL_S):
            await self._send_all(chunks)

    async def say(
        self,
        status: int,
        body: bytes,
        headers: Iterable[tuple[str, str]] = (),
        *,
        kind: str = "application/json",
    ) -> None:
        """A whole answer of ours."""
        own = [("content-type", kind), ("content-length", str(len(body)))]
        await self.send(h11.Response(status_code=status, headers=[*own, *headers]))
        if self._method != b"HEAD":
            await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())

    async def refuse(self, refusal: Refusal, path: str) -> None:
        await self.say(refusal.status, refusal.body(path), refusal.headers)

    @property
    def has_begun_to_answer(self) -> bool:
        return self._http.our_state is not h11.SEND_RESPONSE

    @property
    def has_answered(self) -> bool:
        """Whether all of an answer has been sent."""
        return self._http.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    async def again(self) -> bool:
        """Whether the connection can take another request: what was not read of this one is read by then, within limits."""
        unread = 0
        with trio.move_on_after(LINGER_S):
            while self._http.their_state is h11.SEND_BODY and self._http.our_state is h11.DONE:
                unread += len(await self.body() or b"")
                if unread > MAX_BODY_BYTES:
                    return False
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def linger(self) -> None:
        """Ends what is sent, and reads what still comes: closing with something unread breaks the connection, and the client
        would lose an answer that it has not read yet.
        """
        if self.is_gone:
            return
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError), trio.move_on_after(LINGER_S):
            await self._stream.send_eof()
            unread = 0
            while unread < 2 * MAX_BODY_BYTES and (data := await self._stream.receive_some(_PART_BYTES)):
                unread += len(data)

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await self._receive()
        return event  # type: ignore[return-value] # NEED_DATA is out

    async def _receive(self) -> None:
        data = await self._stream.receive_some(_PART_BYTES)
        self.is_gone = not data
        self._http.receive_data(data)

    async def _send(self, event: h11.Event) -> None:
        if isinstance(event, h11.Response):
            self.status = event.status_code
        data = self._http.send(event)
        if data:
            await self._send_all(data)

    async def _send_all(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            self.is_gone = True
            raise
