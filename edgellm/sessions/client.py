"""The CLI's side of sessions: start a daemon, follow its bring-up, ask it, close it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import msgspec

from edgellm import errors
from edgellm.errors import EdgeError, EngineError, SessionError, UsageError
from edgellm.sessions.daemon_order import Order
from edgellm.sessions.registry import Registry, SessionFiles, SessionRecord, read_record, runs
from edgellm.sessions.story import Story, crashed, read_journal
from edgellm.wire import backend_pb2, backend_pb2_grpc, session_pb2, session_pb2_grpc

CALL_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 20.0
START_TIMEOUT_S = 30.0
POLL_S = 0.1


class ProgressLine(msgspec.Struct, frozen=True):
    at: float
    who: str
    phase: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session as it is now; `description` is None when its daemon does not answer."""

    name: str
    record: SessionRecord | None
    description: session_pb2.Description | None
    story: Story | None = None
    """What its journal tells, where its daemon is dead."""

    @property
    def has_crashed(self) -> bool:
        """Whether its daemon has died without a word; it can be recovered."""
        return self.story is not None and not (self.record and self.record.failure)


def start_session(
    registry: Registry,
    order: Order,
    files: SessionFiles,
    on_progress: Callable[[ProgressLine], object],
    give_up: threading.Event | None = None,
) -> None:
    """Starts the daemon of a session and follows it until it is ready.

    Raises the error that the daemon met, after which nothing of the session is left but, where it was being recovered, its
    journal. If interrupted, or SessionError when `give_up` is set meanwhile, the session is closed in the same way.
    """
    daemon = launch_session(registry, order, files)
    try:
        _follow(daemon, files, on_progress, give_up or threading.Event())
    except BaseException:
        daemon.terminate()
        try:
            daemon.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        registry.remove(order.name, keep_journal=order.recovers)
        raise


def launch_session(registry: Registry, order: Order, files: SessionFiles) -> subprocess.Popen[bytes]:
    """The daemon of a session, told what to do and not waited for. What becomes of it stands in `files`.

    Raises OSError where it cannot be started, after which nothing of the session is left.
    """
    daemon: subprocess.Popen[bytes] | None = None
    try:
        with files.log.open("ab") as log:
            # A disk that is full says so here, and not as a daemon that ends without a word.
            log.write(b"starting\n")
            log.flush()
            daemon = subprocess.Popen(
                [sys.executable, "-m", "edgellm.sessions.daemon"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert daemon.stdin is not None
        daemon.stdin.write(msgspec.json.encode(order))
        daemon.stdin.close()
    except BaseException:
        if daemon is not None:
            daemon.kill()
            daemon.wait()
        registry.remove(order.name, keep_journal=order.recovers)
        raise
    return daemon


def _follow(
    daemon: subprocess.Popen[bytes],
    files: SessionFiles,
    on_progress: Callable[[ProgressLine], object],
    give_up: threading.Event,
) -> None:
    told = 0
    while True:
        # The order matters: what was written before the end must still be told after it.
        code = daemon.poll()
        record = read_record(files)
        if files.progress.exists():
            lines = files.progress.read_bytes().splitlines(keepends=True)
            complete = [line for line in lines if line.endswith(b"\n")]
            for line in complete[told:]:
                on_progress(msgspec.json.decode(line, type=ProgressLine))
            told = len(complete)
        if record is not None and record.state == "ready":
            return
        if code is not None:
            raise failure_of(record, f"the session's daemon ended with status {code}", files)
        if give_up.wait(POLL_S):
            raise SessionError("the session was given up while it started")


def failure_of(record: SessionRecord | None, otherwise: str, files: SessionFiles) -> EdgeError:
    """The error that a session's daemon left behind, as an error here."""
    if record is not None and record.failure:
        kind = getattr(errors, record.kind, EdgeError)
        if not (isinstance(kind, type) and issubclass(kind, EdgeError)):
            kind = EdgeError
        error: EdgeError = kind(record.failure, remedy=record.remedy)
        error.exit_code = record.exit_code
        return error
    last = files.log.read_text(errors="replace").strip().splitlines()[-1:] if files.log.exists() else []
    return SessionError(otherwise + (f": {last[0][:300]}" if last else ""), remedy="run `edgellm doctor`")


def gone(state: SessionState, files: SessionFiles) -> EdgeError:
    """Why a session does not answer."""
    if not state.has_crashed:
        return failure_of(state.record, f"session {state.name!r} is gone", files)
    assert state.story is not None
    return crashed(state.name, state.story)


def session_state(registry: Registry, name: str, *, timeout_s: float = CALL_TIMEOUT_S) -> SessionState:
    """How a session is. Raises SessionError when there is none of that name."""
    files = registry.files(name)
    record = read_record(files)
    description = None
    with grpc.insecure_channel(f"unix:{files.socket}") as channel:
        stub = session_pb2_grpc.SessionStub(channel)  # type: ignore[no-untyped-call] # generated
        try:
            description = stub.Describe(session_pb2.DescribeRequest(), timeout=timeout_s)
        except grpc.RpcError:
            description = None
    is_dead = description is None and not _alive(record) and not _just_begun(files, record)
    return SessionState(name, record, description, read_journal(files.journal) if is_dead else None)


def list_sessions(registry: Registry, *, timeout_s: float = CALL_TIMEOUT_S) -> tuple[SessionState, ...]:
    """All sessions of this user. What a daemon left behind that was killed and kept no journal is swept away on the way.

    `timeout_s`: how long each of them has to say how it is.
    """
    states = []
    for name in registry.names():
        state = session_state(registry, name, timeout_s=timeout_s)
        if (
            state.description is None
            and state.story is None
            and not _alive(state.record)
            and not (state.record and state.record.failure)
            and not _just_begun(registry.files(name), state.record)
        ):
            registry.remove(name)
            continue
        states.append(state)
    return tuple(states)


def ask_session(
    registry: Registry,
    name: str,
    request: backend_pb2.GenerateRequest,
    *,
    state: SessionState | None = None,
) -> Iterator[backend_pb2.GenerateEvent]:
    """The answer of an open session, piece by piece; closing the iterator frees its slot. `state`: its own, just asked for.

    Raises SessionError when the session is not there, not ready or broken, UsageError and EngineError as the engine does.
    """
    state = state or session_state(registry, name)
    files = registry.files(name)
    if state.description is None:
        raise gone(state, files)
    if state.description.state == "closing":
        raise SessionError(
            f"session {name!r} closes: {state.description.detail}",
            remedy="open another one: edgellm session open --model MODEL",
        )
    if state.description.state != "ready":
        raise SessionError(f"session {name!r} is still starting", remedy="ask again in a moment")
    with grpc.insecure_channel(f"unix:{files.socket}") as channel:
        stub = session_pb2_grpc.SessionStub(channel)  # type: ignore[no-untyped-call] # generated
        use = stub.Use(session_pb2.UseRequest())
        try:
            engine = next(use)
            with grpc.insecure_channel(f"unix:{engine.socket}") as to_engine:
                call = backend_pb2_grpc.BackendStub(to_engine).Generate(request)  # type: ignore[no-untyped-call]
                try:
                    yield from call
                finally:
                    call.cancel()
        except grpc.RpcError as error:
            raise request_error(error, name, files) from error
        finally:
            use.cancel()


def close_session(registry: Registry, name: str) -> None:
    """Closes a session and returns when everything of it is gone. Raises SessionError when there is none of that name."""
    files = registry.files(name)
    record = read_record(files)
    with grpc.insecure_channel(f"unix:{files.socket}") as channel:
        stub = session_pb2_grpc.SessionStub(channel)  # type: ignore[no-untyped-call] # generated
        try:
            stub.Close(session_pb2.CloseRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError:
            if _alive(record):
                import psutil

                assert record is not None
                psutil.Process(record.pid).terminate()
    deadline = time.monotonic() + CLOSE_TIMEOUT_S
    while _alive(record):
        if time.monotonic() > deadline:
            import psutil

            assert record is not None
            # Its cells die with it: each is bound to its process by the kernel.
            psutil.Process(record.pid).kill()
            break
        time.sleep(POLL_S)
    registry.remove(name)


def swap_session(
    registry: Registry, name: str, model: str, on_progress: Callable[[ProgressLine], None]
) -> None:
    """Puts `model` behind a session; returns when it answers. The endpoint stays, and requests that run are finished.

    Raises SessionError when the session is not there or starting, and what the swap met; then the session answers as before.
    """
    files = registry.files(name)
    with grpc.insecure_channel(f"unix:{files.socket}") as channel:
        stub = session_pb2_grpc.SessionStub(channel)  # type: ignore[no-untyped-call] # generated
        try:
            for event in stub.Swap(session_pb2.SwapRequest(model=model)):
                if event.failure:
                    error = EdgeError(event.failure, remedy=event.remedy)
                    error.exit_code = event.exit_code
                    raise error
                on_progress(ProgressLine(time.time(), event.who, event.phase, event.detail))
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                raise SessionError(
                    f"session {name!r} cannot be swapped now: {error.details()}",
                    remedy="try it again in a moment",
                ) from error
            raise request_error(error, name, files) from error


def _just_begun(files: SessionFiles, record: SessionRecord | None) -> bool:
    """Whether a daemon may be on its way that has not said anything yet."""
    try:
        return record is None and time.time() - files.directory.stat().st_mtime < START_TIMEOUT_S
    except FileNotFoundError:
        return False


def _alive(record: SessionRecord | None) -> bool:
    return record is not None and runs(record.pid, record.process_started)


def request_error(error: grpc.RpcError, name: str, files: SessionFiles) -> EdgeError:
    """What gRPC says of a question to a session, as an error of ours."""
    code = error.code() if isinstance(error, grpc.Call) else None
    details = (error.details() if isinstance(error, grpc.Call) else None) or "it said nothing"
    line = details.strip().splitlines()[0][:500]
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return UsageError(line)
    if code == grpc.StatusCode.UNAVAILABLE:
        # The daemon writes why before it goes.
        time.sleep(1.0)
        record = read_record(files)
        story = None if _alive(record) else read_journal(files.journal)
        state = SessionState(name, record, None, story)
        if state.has_crashed:
            return gone(state, files)
        return failure_of(record, f"session {name!r} broke during the answer", files)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in line:
        return UsageError("the prompt is too long to be sent", remedy="shorten it")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return SessionError(f"session {name!r} is busy: {line}", remedy="ask again when some are answered")
    if code == grpc.StatusCode.FAILED_PRECONDITION:
        return SessionError(
            f"session {name!r} does not take questions: {line}", remedy="ask again in a moment"
        )
    if code == grpc.StatusCode.CANCELLED:
        return SessionError(f"the answer of session {name!r} was given up")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return EngineError(
            f"session {name!r} did not answer in time", remedy="allow more time, or ask for less"
        )
    return EngineError(f"session {name!r} failed: {line}")
