"""Requests to an open session's engine, over gRPC on its Unix sockets. Tokens do not pass through the session's daemon."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TypeVar

import grpc

from edgellm.engine.question import piece_from_wire, question_to_wire
from edgellm.errors import SessionError
from edgellm.sessions.client import request_error
from edgellm.sessions.registry import SessionFiles
from edgellm.types.request import Piece, Question
from edgellm.wire import backend_pb2, backend_pb2_grpc, session_pb2, session_pb2_grpc

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Call(Protocol[T_co]):
    """A call that streams its answers, as grpc's stubs return it."""

    def __next__(self) -> T_co: ...
    def cancel(self) -> bool: ...


class Connection:
    """Channels to a session that all requests of a process share. Safe in any number of threads."""

    def __init__(
        self, name: str, files: SessionFiles, timeout_s: float, notice: Callable[[str], None]
    ) -> None:
        """`notice` is told the digest of the model that a request gets, by the thread of the request."""
        self.name = name
        self.files = files
        self.timeout_s = timeout_s
        self.notice = notice
        self._daemon = grpc.insecure_channel(f"unix:{files.socket}")
        self._engines: dict[str, grpc.Channel] = {}
        self._lock = threading.Lock()

    def ask(self, question: Question, digest: str = "") -> Stream:
        """The answer, piece by piece. The engine is asked when the first one is.

        `digest`: of the only model that may answer; else whichever the session has.
        """
        return Stream(self, question_to_wire(question, secrets.token_hex(8)), digest)

    def use(self) -> Call[session_pb2.Engine]:
        """While the call lasts the session counts as used."""
        stub = session_pb2_grpc.SessionStub(self._daemon)  # type: ignore[no-untyped-call] # generated
        return stub.Use(session_pb2.UseRequest(), timeout=self.timeout_s)  # type: ignore[no-any-return]

    def generate(self, socket: str, request: backend_pb2.GenerateRequest) -> Call[backend_pb2.GenerateEvent]:
        with self._lock:
            if socket not in self._engines:
                self._engines[socket] = grpc.insecure_channel(f"unix:{socket}")
            engine = self._engines[socket]
        stub = backend_pb2_grpc.BackendStub(engine)  # type: ignore[no-untyped-call] # generated
        return stub.Generate(request, timeout=self.timeout_s)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends all that still runs by SessionErrors."""
        with self._lock:
            for engine in self._engines.values():
                engine.close()
        self._daemon.close()


class Stream:
    """The pieces of one answer, as they come.

    One thread iterates; `close`, from any, frees the engine's slot at once, and so do the end of a `with` block and the end of
    the last reference: a `for` that is left by `break` leaves nothing behind. Iterating raises UsageError where the engine
    cannot take the prompt, EngineError where it fails, SessionError where the session is gone.
    """

    def __init__(self, connection: Connection, request: backend_pb2.GenerateRequest, digest: str) -> None:
        self._connection = connection
        self._request = request
        self._digest = digest
        self._lock = threading.Lock()
        self._calls: list[Any] = []
        self._events: Call[backend_pb2.GenerateEvent] | None = None
        self._closed = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        try:
            if self._events is None:
                self._events = self._begun()
            event = next(self._events)
        except grpc.RpcError as error:
            closed = self._closed
            self.close()
            if closed:
                raise StopIteration from None
            raise request_error(error, self._connection.name, self._connection.files) from error
        except BaseException:
            self.close()
            raise
        return piece_from_wire(event)

    def close(self) -> None:
        """Ends the request, whether or not the answer has ended."""
        with self._lock:
            self._closed = True
            calls, self._calls = self._calls, []
        for call in calls:
            call.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _begun(self) -> Call[backend_pb2.GenerateEvent]:
        use = self._kept(self._connection.use)
        try:
            engine = next(use)
        except StopIteration:
            raise SessionError(f"session {self._connection.name!r} did not say where its engine is") from None
        self._connection.notice(engine.digest)
        if self._digest not in ("", engine.digest):
            raise SessionError(
                f"session {self._connection.name!r} has another model by now: {engine.model}",
                remedy="load that one's tokenizer, and make the prompts anew",
            )
        return self._kept(lambda: self._connection.generate(engine.socket, self._request))

    def _kept(self, call: Callable[[], Call[T]]) -> Call[T]:
        with self._lock:
            if self._closed:
                raise StopIteration
            try:
                made = call()
            except ValueError as error:
                # What gRPC says of a channel that was closed.
                raise SessionError(f"session {self._connection.name!r} was closed here") from error
            self._calls.append(made)
            return made
