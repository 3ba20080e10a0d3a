"""A session's daemon: holds a cluster open, and tells who asks where its engine is, until it is closed, idle for too long,
or broken. Tokens do not pass through it.

`python -m edgellm.sessions.daemon`, with an `Order` as JSON on standard input. Started by `client.start_session`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import msgspec
import psutil
import structlog
import trio

from edgellm.cluster.head import Progress
from edgellm.errors import EdgeError, UsageError, unwrapped
from edgellm.gateway.guard import Rules
from edgellm.gateway.server import Gateway
from edgellm.log import log_to
from edgellm.paths import default_paths
from edgellm.requester.choose import Wanted
from edgellm.requester.open import RequesterOptions, open_requester
from edgellm.sessions.checking import keep_checking
from edgellm.sessions.daemon_order import Order
from edgellm.sessions.holding import DRAIN_S, SwapDesk, holding
from edgellm.sessions.journal import SYNC_S, Journal
from edgellm.sessions.own_console import OwnConsole
from edgellm.sessions.registry import SessionFiles, SessionRecord, forget, runs, write_record
from edgellm.sessions.service import SessionService
from edgellm.sessions.serving import MAX_REQUESTS_AT_ONCE, Serving
from edgellm.sessions.story import read_journal
from edgellm.trust.share import check_share
from edgellm.types.quantity import format_duration
from edgellm.wire import session_pb2_grpc

log = structlog.get_logger(__name__)

IDLE_CHECK_S = 0.5
OWNER_CHECK_S = 1.0
MAX_LINES = 200
"""That are kept of what one member says during a bring-up."""


async def hold(
    order: Order,
    files: SessionFiles,
    serving: Serving,
    desk: SwapDesk,
    console: OwnConsole,
    record: SessionRecord,
) -> None:
    """Brings the cluster up and holds it, or others after it, until the session ends. Raises EdgeErrors when it breaks."""
    options = RequesterOptions(
        order.bootstrap,
        order.mdns,
        "none" if order.isolation == "none" else "bwrap",
        kv_scope=order.kv_scope,
        check_share=check_share(order.spot_check, order.peers, os.environ),
        swarm=order.swarm,
    )
    wanted = Wanted(
        tensor_parallel=order.tensor_parallel,
        pipeline_parallel=order.pipeline_parallel,
        peers=order.peers,
        fabric=order.fabric,
        context=order.context,
        sequences=order.sequences,
        serves_api=True,
        at_once=MAX_REQUESTS_AT_ONCE,
        min_tok_s=order.min_tok_s,
        max_load=order.max_load,
        spares=order.spares,
        patience_s=order.patience_s,
        silence_s=order.silence_s,
    )
    with files.progress.open("a", buffering=1) as progress, unwrapped():
        told: Counter[str] = Counter()

        def tell(item: Progress) -> None:
            if item.phase == "discover":
                told.clear()
            told[item.who] += 1
            if told[item.who] > MAX_LINES:
                # What hosts say is not ours to bound, but what is kept of it is.
                return
            serving.note(" ".join(filter(None, (item.who, item.phase, item.detail))))
            line = {"at": time.time(), "who": item.who, "phase": item.phase, "detail": item.detail}
            progress.write(msgspec.json.encode(line).decode() + "\n")

        async with (
            open_requester(options, default_paths()) as requester,
            holding(requester, wanted, serving, tell) as clusters,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(console.serve, requester.network)
            await clusters.begin(order.model)
            ready = msgspec.structs.replace(record, state="ready")
            write_record(files, ready)
            swapping = trio.CancelScope()

            async def swap() -> None:
                with swapping:
                    while True:
                        if (asked := desk.taken()) is not None:
                            await clusters.swap(asked)
                            write_record(files, msgspec.structs.replace(ready, model=serving.model))
                        await trio.sleep(IDLE_CHECK_S)

            nursery.start_soon(swap)
            nursery.start_soon(keep_checking, requester, wanted, serving, desk, tell)
            try:
                while not serving.expired():
                    if serving.cost.is_used_up(time.time()):
                        swapping.cancel()
                        await _finish(serving)
                        break
                    await trio.sleep(IDLE_CHECK_S)
                serving.leave(f"idle for {format_duration(order.idle_s)}")
                log.info("closing", reason=serving.detail)
                await clusters.end()
            finally:
                serving.leave()
            nursery.cancel_scope.cancel()


async def _finish(serving: Serving) -> None:
    """Takes no new requests; returns when those that run have ended, or have had their time."""
    limit = format_duration(serving.cost.limit_s)
    serving.leave(f"its hosts have lent {limit} together, as much as --max-cost allows")
    with trio.move_on_after(DRAIN_S):
        while serving.idleness.running:
            await trio.sleep(IDLE_CHECK_S)


async def run(order: Order, files: SessionFiles) -> int:
    """The daemon's life; its exit code."""
    record = SessionRecord(
        name=order.name,
        model=order.model,
        pid=os.getpid(),
        process_started=psutil.Process().create_time(),
    )
    write_record(files, record)
    serving = Serving(order.model, order.idle_s, order.max_cost_s, order.spent_s)
    desk = SwapDesk(serving)
    close_asked = threading.Event()
    service = SessionService(order, serving, desk, close_asked.set)
    server = grpc.server(ThreadPoolExecutor(MAX_REQUESTS_AT_ONCE + 8))
    session_pb2_grpc.add_SessionServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{files.socket}")
    server.start()
    broken: EdgeError | None = None
    journal: Journal | None = None
    try:
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                await hold(order, files, serving, desk, console, record)
                nursery.cancel_scope.cancel()

            listener = await _listener(order.port)
            service.endpoint = f"http://127.0.0.1:{_port(listener)}/v1"
            if order.journal:
                journal = service.journal = _journal(order, _port(listener))
                serving.watch(journal.serves)
                nursery.start_soon(_kept, journal, serving)
            console = OwnConsole(order, _port(listener), close_asked.set)
            gateway = Gateway(
                Rules(_port(listener), order.api_key),
                serving.state,
                serving.used,
                most_at_once=MAX_REQUESTS_AT_ONCE,
                console=console.socket,
                journal=journal,
            )
            nursery.start_soon(gateway.serve, listener)
            nursery.start_soon(_until_closed, close_asked, nursery.cancel_scope)
            if order.owner_pid:
                nursery.start_soon(_until_owner_gone, order, close_asked)
            nursery.start_soon(work)
    except* EdgeError as group:
        broken = next(error for error in group.exceptions if isinstance(error, EdgeError))
    finally:
        server.stop(grace=1).wait(timeout=3)
        if journal is not None:
            journal.close()
    if broken is None or (order.owner_pid and not runs(order.owner_pid, order.owner_started)):
        forget(files)
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


def _journal(order: Order, port: int) -> Journal:
    """Takes the place of the one that an earlier daemon of this session left. Raises DiskFull."""
    path = Path(order.journal)
    before = read_journal(path) if order.recovers else None
    # In case of another crash nothing of the owner is left, and the port is the one that clients know.
    kept = msgspec.structs.replace(order, port=port)
    with unwrapped():
        return Journal(path, kept, before.lost() if before else ())


async def _kept(journal: Journal, serving: Serving) -> None:
    while True:
        await trio.sleep(SYNC_S)
        serving.look()
        await trio.to_thread.run_sync(journal.settle)


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


async def _until_closed(close_asked: threading.Event, scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

        async def on_signal() -> None:
            async for _ in signals:
                close_asked.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(on_signal)
            while not close_asked.is_set():
                await trio.sleep(0.1)
            log.info("closing: asked to")
            scope.cancel()


async def _until_owner_gone(order: Order, close_asked: threading.Event) -> None:
    while runs(order.owner_pid, order.owner_started):
        await trio.sleep(OWNER_CHECK_S)
    log.info("closing: the process that it belongs to is gone", pid=order.owner_pid)
    close_asked.set()


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    files = SessionFiles(Path(order.directory), Path(order.journal) if order.journal else None)
    log_to(files.log)
    sys.exit(trio.run(run, order, files))


if __name__ == "__main__":
    main()
