"""A session's daemon: holds one cluster open, and tells who asks where its engine is, until it is closed, idle for too long,
or broken. Tokens do not pass through it.

`python -m edgellm.sessions.daemon`, with an `Order` as JSON on standard input. Started by `client.start_session`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import msgspec
import psutil
import structlog
import trio

from edgellm.cluster.head import Progress
from edgellm.errors import EdgeError, UsageError, unwrapped
from edgellm.gateway.guard import Rules
from edgellm.gateway.server import Broken, Gateway, Ready, Starting, State
from edgellm.log import log_to
from edgellm.paths import default_paths
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import OpenedCluster, opened_cluster
from edgellm.requester.open import RequesterOptions, open_requester
from edgellm.sessions.daemon_order import Order
from edgellm.sessions.idle import Idleness
from edgellm.sessions.registry import Registry, SessionFiles, SessionRecord, runs, write_record
from edgellm.wire import session_pb2, session_pb2_grpc

log = structlog.get_logger(__name__)

MAX_REQUESTS_AT_ONCE = 64
IDLE_CHECK_S = 0.5
OWNER_CHECK_S = 1.0


class _Service(session_pb2_grpc.SessionServicer):
    """`proto/session.proto`, in gRPC's own threads; the cluster is passed in once it is ready."""

    def __init__(self, order: Order, opened_at: float) -> None:
        self._order = order
        self._opened_at = opened_at
        self._lock = threading.Lock()
        self._idleness = Idleness(order.idle_s, time.time())
        self._opened: OpenedCluster | None = None
        self.endpoint = ""
        self._detail = ""
        self.close_asked = threading.Event()

    def use(self, opened: OpenedCluster) -> None:
        with self._lock:
            self._idleness = Idleness(self._order.idle_s, time.time())
            self._opened = opened

    def leave(self) -> None:
        """The cluster is going."""
        with self._lock:
            self._opened, self._detail = None, "it is closing"

    def note(self, progress: Progress) -> None:
        """What the bring-up is at."""
        self._detail = " ".join(filter(None, (progress.who, progress.phase, progress.detail)))

    def state(self) -> State:
        """For those who ask the endpoint."""
        with self._lock:
            opened = self._opened
        if opened is None:
            return Starting(self._detail or "just begun")
        if opened.cluster.api_socket is None:
            return Broken("its engine serves no API; `edgellm ask --session` works")
        stages = opened.cluster.stages.stages
        route = ", ".join(
            f"{stage.name or stage.peer[:16]} {stage.first_layer}-{stage.end_layer - 1}" for stage in stages
        )
        return Ready(str(opened.cluster.api_socket), route)

    def expired(self) -> bool:
        with self._lock:
            expires_at = self._idleness.expires_at()
        return expires_at is not None and time.time() >= expires_at

    def Describe(
        self, request: session_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> session_pb2.Description:
        with self._lock:
            opened, idleness = self._opened, self._idleness
        description = session_pb2.Description(
            name=self._order.name,
            model=self._order.model,
            state="ready" if opened else "starting",
            opened_unix_ms=round(self._opened_at * 1000),
            idle_expires_unix_ms=round((idleness.expires_at() or 0) * 1000),
            running_requests=idleness.running,
            endpoint=self.endpoint,
        )
        if opened is not None:
            plan = opened.cluster.stages
            description.tensor_parallel = plan.tensor_parallel
            description.max_model_len = opened.request.context
            description.digest = opened.cluster.plan.digest
            description.predicted_prefill_tok_s = plan.prediction.prefill_tok_s
            for stage in plan.stages:
                description.stages.add(
                    peer=stage.peer, name=stage.name, first_layer=stage.first_layer, end_layer=stage.end_layer
                )
            if opened.kv is not None:
                description.shares_kv = True
                for peer, tokens in tuple(opened.kv.tokens.items()):
                    description.kv_holders.add(peer=peer, tokens=tokens, name=opened.names.get(peer, ""))
        return description

    def Use(
        self, request: session_pb2.UseRequest, context: grpc.ServicerContext
    ) -> Iterator[session_pb2.Engine]:
        with self._lock:
            opened = self._opened
            running = self._idleness.running
        if opened is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the session is still starting")
        if running >= MAX_REQUESTS_AT_ONCE:
            # The threads that are left are for those who describe or close the session.
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"it answers {running} questions already")
        assert opened is not None
        ended = threading.Event()
        # False where the caller has gone already.
        if context.add_callback(ended.set):
            with self.counted():
                yield session_pb2.Engine(socket=str(opened.cluster.engine_socket))
                ended.wait()

    def Close(
        self, request: session_pb2.CloseRequest, context: grpc.ServicerContext
    ) -> session_pb2.CloseReply:
        self.close_asked.set()
        return session_pb2.CloseReply()

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._idleness = self._idleness.begin()
        try:
            yield
        finally:
            with self._lock:
                self._idleness = self._idleness.end(time.time())


async def hold(order: Order, files: SessionFiles, service: _Service, on_ready: trio.Event) -> None:
    """Brings the cluster up and holds it until the session ends. Raises EdgeErrors when it breaks."""
    paths = default_paths()
    options = RequesterOptions(
        order.bootstrap,
        order.mdns,
        "none" if order.isolation == "none" else "bwrap",
        kv_scope=order.kv_scope,
    )
    wanted = Wanted(
        tensor_parallel=order.tensor_parallel,
        pipeline_parallel=order.pipeline_parallel,
        peers=order.peers,
        fabric=order.fabric,
        context=order.context,
        sequences=order.sequences,
        serves_api=True,
        min_tok_s=order.min_tok_s,
        max_load=order.max_load,
    )
    with files.progress.open("a", buffering=1) as progress, unwrapped():

        def tell(item: Progress) -> None:
            service.note(item)
            line = {"at": time.time(), "who": item.who, "phase": item.phase, "detail": item.detail}
            progress.write(msgspec.json.encode(line).decode() + "\n")

        async with (
            open_requester(options, paths) as requester,
            opened_cluster(requester, order.model, None, wanted, tell) as opened,
        ):
            service.use(opened)
            on_ready.set()
            try:
                while not service.expired():
                    await trio.sleep(IDLE_CHECK_S)
                log.info("closing: idle for too long", idle_s=order.idle_s)
            finally:
                service.leave()


async def run(order: Order, files: SessionFiles) -> int:
    """The daemon's life; its exit code."""
    record = SessionRecord(
        name=order.name,
        model=order.model,
        pid=os.getpid(),
        process_started=psutil.Process().create_time(),
    )
    write_record(files, record)
    service = _Service(order, time.time())
    server = grpc.server(ThreadPoolExecutor(MAX_REQUESTS_AT_ONCE + 8))
    session_pb2_grpc.add_SessionServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{files.socket}")
    server.start()
    ready = trio.Event()
    broken: EdgeError | None = None
    try:
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                await hold(order, files, service, ready)
                nursery.cancel_scope.cancel()

            async def note_ready() -> None:
                await ready.wait()
                write_record(files, msgspec.structs.replace(record, state="ready"))

            listener = await _listener(order.port)
            service.endpoint = f"http://127.0.0.1:{_port(listener)}/v1"
            gateway = Gateway(
                Rules(_port(listener), order.api_key),
                service.state,
                service.counted,
                most_at_once=MAX_REQUESTS_AT_ONCE,
            )
            nursery.start_soon(gateway.serve, listener)
            nursery.start_soon(_until_closed, service, nursery.cancel_scope)
            if order.owner_pid:
                nursery.start_soon(_until_owner_gone, order, service)
            nursery.start_soon(note_ready)
            nursery.start_soon(work)
    except* EdgeError as group:
        broken = next(error for error in group.exceptions if isinstance(error, EdgeError))
    finally:
        server.stop(grace=1).wait(timeout=3)
    if broken is None or (order.owner_pid and not runs(order.owner_pid, order.owner_started)):
        Registry(files.directory.parent).remove(order.name)
        return 0
    log.error("the session broke", error=str(broken))
    failed = msgspec.structs.replace(
        record,
        state="failed",
        failure=str(broken),
        remedy=broken.remedy,
        exit_code=broken.exit_code,
        kind=next(kind.__name__ for kind in type(broken).__mro__ if kind.__module__ == EdgeError.__module__),
    )
    write_record(files, failed)
    return broken.exit_code


async def _listener(port: int) -> trio.SocketListener:
    """On loopback. Raises UsageError where the port is taken."""
    try:
        listeners: list[trio.SocketListener] = await trio.open_tcp_listeners(port, host="127.0.0.1")
    except OSError as error:
        raise UsageError(
            f"port {port} of this machine cannot be used: {error.strerror}",
            remedy="choose another one with --port, or leave it out",
        ) from error
    return listeners[0]


def _port(listener: trio.SocketListener) -> int:
    port: int = listener.socket.getsockname()[1]
    return port


async def _until_closed(service: _Service, scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

        async def on_signal() -> None:
            async for _ in signals:
                service.close_asked.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(on_signal)
            while not service.close_asked.is_set():
                await trio.sleep(0.1)
            log.info("closing: asked to")
            scope.cancel()


async def _until_owner_gone(order: Order, service: _Service) -> None:
    while runs(order.owner_pid, order.owner_started):
        await trio.sleep(OWNER_CHECK_S)
    log.info("closing: the process that it belongs to is gone", pid=order.owner_pid)
    service.close_asked.set()


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    files = SessionFiles(Path(order.directory))
    log_to(files.log)
    sys.exit(trio.run(run, order, files))


if __name__ == "__main__":
    main()
