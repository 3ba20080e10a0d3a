"""What a cell asks its node about KV pieces: `proto/blocks.proto` on a Unix socket in the cell's runtime directory.

The cell is another's code. It can write in that directory too: the socket is made before the cell starts, and a cell that puts
something else in its place hurts its own cache alone, as the node never connects to a path there. Whatever it asks is bounded
in size, number and time; what it gets for an answer is a piece, or none.

gRPC runs in threads of its own. Each hands its question to a task of the lease's nursery, so that nothing outlives the lease.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

import grpc
import structlog
import trio

from edgellm.errors import CellError, EdgeError, unwrapped
from edgellm.kv.exchange import MAX_NAMES
from edgellm.kv.names import NAME_BYTES
from edgellm.kv.region import Region
from edgellm.kv.sharing import FETCH_S, FIND_S, Outcome, Sharing
from edgellm.wire import blocks_pb2, blocks_pb2_grpc

log = structlog.get_logger(__name__)

MAX_CALLS_AT_ONCE = 32
"""More are refused at once, which is a miss."""
MAX_PIECES_AT_ONCE = 8
"""Whose bytes pass through this node's memory; others wait for their turn, as long as their time is."""
MAX_MESSAGE_BYTES = 4 << 20
PART_BYTES = 1 << 20
_SMALL_BYTES = 64 << 10
STORE_S = 30.0
SLACK_S = 1.0
"""What a thread waits longer than the task that it asked, which has a deadline of its own."""
STOP_S = 2.0

T = TypeVar("T")


@asynccontextmanager
async def serve_pieces(sharing: Sharing, socket: Path) -> AsyncIterator[None]:
    """Serves `sharing` on `socket` while the context lasts. Raises CellError where the socket cannot be made."""
    with unwrapped():
        async with trio.open_nursery() as nursery:
            server = _server(sharing, _Tasks(nursery), socket)
            server.start()
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                stopped = server.stop(grace=0)
                with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_S):
                    await trio.to_thread.run_sync(stopped.wait, STOP_S, abandon_on_cancel=True)


def _server(sharing: Sharing, tasks: _Tasks, socket: Path) -> grpc.Server:
    server = grpc.server(
        ThreadPoolExecutor(MAX_CALLS_AT_ONCE, thread_name_prefix="kv"),
        maximum_concurrent_rpcs=MAX_CALLS_AT_ONCE,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # Of one connection; over it the cell's side would wait instead of being refused.
            ("grpc.max_concurrent_streams", 4 * MAX_CALLS_AT_ONCE),
            ("grpc.max_metadata_size", 8192),
        ],
    )
    blocks_pb2_grpc.add_BlocksServicer_to_server(_Servicer(sharing, tasks), server)  # type: ignore[no-untyped-call]
    try:
        bound = server.add_insecure_port(f"unix:{socket}")
    except RuntimeError as error:
        raise CellError(f"cannot listen on {socket}: {error}") from error
    if not bound:
        raise CellError(f"cannot listen on {socket}")
    return server


class _Tasks:
    """Runs async functions in a nursery for threads that wait."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()

    def start(self, work: Callable[[], Awaitable[T]]) -> Future[T]:
        """The result of `work` in the nursery; CancelledError, as its result, when the nursery ends."""
        future: Future[T] = Future()

        async def run() -> None:
            try:
                result = await work()
            except EdgeError as error:
                future.set_exception(error)
            except Exception as error:
                # A defect here must not end somebody's lease: the cell computes instead.
                log.exception("a question of a cell about KV pieces failed")
                future.set_exception(error)
            except BaseException:
                future.cancel()
                future.set_running_or_notify_cancel()
                raise
            else:
                future.set_result(result)

        def begin() -> None:
            if self._nursery.cancel_scope.cancel_called:
                future.cancel()
                future.set_running_or_notify_cancel()
            else:
                self._nursery.start_soon(run)

        try:
            self._token.run_sync_soon(begin)
        except trio.RunFinishedError:
            future.cancel()
            future.set_running_or_notify_cancel()
        return future

    def run(self, work: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        """Waits for the result. Raises what `work` raises, CancelledError at the end of the lease, TimeoutError."""
        return self.start(work).result(timeout_s + SLACK_S)


class _Servicer(blocks_pb2_grpc.BlocksServicer):
    """In gRPC's threads. Every way out of a call is an answer or a status; none is an exception of ours."""

    def __init__(self, sharing: Sharing, tasks: _Tasks) -> None:
        self._sharing = sharing
        self._tasks = tasks
        self._pieces = threading.BoundedSemaphore(MAX_PIECES_AT_ONCE)

    def Find(self, request: blocks_pb2.FindRequest, context: grpc.ServicerContext) -> blocks_pb2.FindReply:
        region = _region(request.region, context)
        names = tuple(_name(name, context) for name in request.names[:MAX_NAMES])
        with _told(context):
            chunks = self._tasks.run(lambda: self._sharing.find(names, region, request.chunk_tokens), FIND_S)
            return blocks_pb2.FindReply(
                chunks=[
                    blocks_pb2.FoundChunk(
                        pieces=[
                            blocks_pb2.Piece(
                                region=_region_to_wire(piece.region),
                                size_bytes=piece.size_bytes,
                                holder=piece.holder,
                            )
                            for piece in chunk
                        ]
                    )
                    for chunk in chunks
                ]
            )

    def Fetch(
        self, request: blocks_pb2.FetchRequest, context: grpc.ServicerContext
    ) -> Iterator[blocks_pb2.FetchPart]:
        region, name = _region(request.region, context), _name(request.name, context)
        timeout_s = min(FETCH_S, context.time_remaining() or FETCH_S)
        with self._turn(context, timeout_s), _told(context):
            fetching = self._tasks.run(lambda: self._sharing.fetch(name, region, timeout_s), timeout_s)
            holder = fetching.holder
            while blocks := self._tasks.run(fetching.next, timeout_s):
                for data in _parts(blocks):
                    if not context.is_active():
                        return
                    yield blocks_pb2.FetchPart(data=data, holder=holder)
                    holder = ""

    def Store(
        self, request_iterator: Iterator[blocks_pb2.StorePart], context: grpc.ServicerContext
    ) -> blocks_pb2.StoreReply:
        # A cell that begins a piece and never goes on would keep the thread.
        timer = threading.Timer(STORE_S, context.cancel)
        timer.daemon = True
        timer.start()
        try:
            with self._turn(context, STORE_S), _told(context):
                return blocks_pb2.StoreReply(kept=self._store(request_iterator, context))
        finally:
            timer.cancel()

    def Report(
        self, request: blocks_pb2.ReportRequest, context: grpc.ServicerContext
    ) -> blocks_pb2.ReportReply:
        region, name = _region(request.region, context), _name(request.name, context)
        with _told(context):
            outcome = Outcome(request.outcome) if request.outcome in set(Outcome) else None
            if outcome is None:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an unknown outcome")
            assert outcome is not None
            self._tasks.run(
                lambda: self._sharing.report(name, region, request.holder[:128], outcome, request.tokens),
                FIND_S,
            )
        return blocks_pb2.ReportReply()

    def _store(self, parts: Iterator[blocks_pb2.StorePart], context: grpc.ServicerContext) -> bool:
        first = next(parts, None)
        if first is None:
            return False
        region, name = _region(first.region, context), _name(first.name, context)
        storing = self._tasks.run(lambda: self._sharing.store(name, region), STORE_S)
        if storing is None:
            return False
        try:
            part: blocks_pb2.StorePart | None = first
            while part is not None and not storing.is_there:
                if not self._tasks.run(functools.partial(storing.add, part.data), STORE_S):
                    return False
                part = next(parts, None)
            return storing.is_there or self._tasks.run(storing.finish, STORE_S)
        finally:
            self._tasks.start(storing.close)

    @contextmanager
    def _turn(self, context: grpc.ServicerContext, timeout_s: float) -> Iterator[None]:
        if not self._pieces.acquire(timeout=timeout_s):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many pieces are on their way")
        try:
            yield
        finally:
            self._pieces.release()


@contextmanager
def _told(context: grpc.ServicerContext) -> Iterator[None]:
    """Turns what can go wrong into a status, which the cell takes for a miss."""
    try:
        yield
    except EdgeError as error:
        _abort(context, grpc.StatusCode.NOT_FOUND, str(error)[:300])
    except TimeoutError:
        _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the node did not answer in time")
    except CancelledError:
        _abort(context, grpc.StatusCode.UNAVAILABLE, "the lease is over")
    except grpc.RpcError:
        # The cell ended its own call.
        _abort(context, grpc.StatusCode.CANCELLED, "the call was cancelled")


def _parts(blocks: Sequence[bytes]) -> Iterator[bytes]:
    """A block, and with it those after it that are small: of a piece the last is a few bytes, and a message costs as much."""
    pending: list[bytes] = []
    for block in blocks:
        if sum(map(len, pending)) + len(block) > PART_BYTES + _SMALL_BYTES:
            yield b"".join(pending)
            pending = []
        pending.append(block)
    yield b"".join(pending)


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> NoReturn:
    context.abort(code, details)
    raise AssertionError("abort raises")


def _name(name: bytes, context: grpc.ServicerContext) -> bytes:
    if len(name) != NAME_BYTES:
        _abort(context, grpc.StatusCode.INVALID_ARGUMENT, f"a name of {len(name)} bytes; it has {NAME_BYTES}")
    return name


def _region(message: blocks_pb2.Region, context: grpc.ServicerContext) -> Region:
    try:
        return Region(message.first_layer, message.end_layer, message.first_head, message.end_head)
    except (EdgeError, ValueError) as error:
        _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error)[:300])


def _region_to_wire(region: Region) -> blocks_pb2.Region:
    return blocks_pb2.Region(
        first_layer=region.first_layer,
        end_layer=region.end_layer,
        first_head=region.first_head,
        end_head=region.end_head,
    )
