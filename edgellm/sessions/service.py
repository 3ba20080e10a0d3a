"""`proto/session.proto`, in gRPC's own threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from edgellm.errors import SessionError, UsageError
from edgellm.sessions.daemon_order import Order
from edgellm.sessions.holding import SwapDesk
from edgellm.sessions.journal import Journal
from edgellm.sessions.serving import MAX_REQUESTS_AT_ONCE, Serving
from edgellm.wire import session_pb2, session_pb2_grpc

_POLL_S = 0.1


class SessionService(session_pb2_grpc.SessionServicer):
    """For those who use the session by its socket."""

    def __init__(self, order: Order, serving: Serving, desk: SwapDesk, close: Callable[[], None]) -> None:
        self._order, self._serving, self._desk, self._close = order, serving, desk, close
        self._opened_at = time.time()
        self._lock = threading.Lock()
        self._uses = 0
        """Calls of `Use` that go on, those that wait for a cluster included."""
        self.endpoint = ""
        self.journal: Journal | None = None

    def Describe(
        self, request: session_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> session_pb2.Description:
        slot, idleness, cost = self._serving.slot, self._serving.idleness, self._serving.cost
        description = session_pb2.Description(
            name=self._order.name,
            model=self._serving.model,
            state=self._state(),
            detail=self._serving.detail if slot is None or self._serving.swapping_to else "",
            opened_unix_ms=round(self._opened_at * 1000),
            idle_expires_unix_ms=round((idleness.expires_at() or 0) * 1000),
            running_requests=idleness.running,
            endpoint=self.endpoint,
            network=self._order.fabric,
            isolation=self._order.isolation,
            kv_scope=self._order.kv_scope or "",
            bootstrap=self._order.bootstrap,
            swarm=self._order.swarm,
            cost_s=cost.spent(time.time()),
            max_cost_s=cost.limit_s,
            swapping_to=self._serving.swapping_to,
        )
        if self.journal is not None:
            for lost in self.journal.unfinished:
                description.unfinished.add(
                    path=lost.path,
                    request_id=lost.request_id,
                    model=lost.model,
                    begun_unix_ms=round(lost.at * 1000),
                    lost_unix_ms=round(lost.lost_at * 1000),
                )
        if slot is not None:
            opened = slot.opened
            description.api_socket = str(opened.cluster.api_socket or "")
            plan = opened.cluster.stages
            description.tensor_parallel = plan.tensor_parallel
            description.max_model_len = opened.request.context
            description.digest = opened.cluster.plan.digest
            description.predicted_prefill_tok_s = plan.prediction.prefill_tok_s
            cluster = opened.cluster
            description.recovering, description.recoveries = cluster.recovering, cluster.recoveries
            description.spares.extend(opened.names.get(peer, peer[-8:]) for peer in cluster.standing_by())
            for stage in plan.stages:
                description.stages.add(
                    peer=stage.peer,
                    name=stage.name,
                    first_layer=stage.first_layer,
                    end_layer=stage.end_layer,
                    relay=opened.relay_of(stage.peer),
                )
            if opened.kv is not None:
                description.shares_kv = True
                for peer, tokens in tuple(opened.kv.tokens.items()):
                    description.kv_holders.add(peer=peer, tokens=tokens, name=opened.names.get(peer, ""))
        return description

    def _state(self) -> str:
        if self._serving.is_closing:
            return "closing"
        return "ready" if self._serving.slot is not None or self._serving.swapping_to else "starting"

    def Use(
        self, request: session_pb2.UseRequest, context: grpc.ServicerContext
    ) -> Iterator[session_pb2.Engine]:
        with self._lock:
            if self._uses >= MAX_REQUESTS_AT_ONCE:
                # The threads that are left are for those who describe or close the session.
                busy = f"it answers {self._uses} questions already"
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, busy)
            self._uses += 1
        try:
            yield from self._use(context)
        finally:
            with self._lock:
                self._uses -= 1

    def _use(self, context: grpc.ServicerContext) -> Iterator[session_pb2.Engine]:
        ended = threading.Event()
        # False where the caller has gone already.
        if not context.add_callback(ended.set):
            return
        while True:
            with self._serving.used() as slot:
                if slot is not None:
                    cluster = slot.opened.cluster
                    with self._noted():
                        yield session_pb2.Engine(
                            socket=str(cluster.engine_socket), digest=cluster.plan.digest, model=slot.model
                        )
                        ended.wait()
                    return
            # In this order: a swap that ends between the two has left a cluster.
            if not self._serving.swapping_to and self._serving.slot is None:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the session is still starting")
            if ended.wait(_POLL_S):
                return

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """A question that does not come by the endpoint; how it ends is between its client and the engine."""
        if self.journal is None:
            yield
            return
        number = self.journal.begin("edgellm ask")
        try:
            yield
        finally:
            self.journal.end(number, "finished")

    def Swap(
        self, request: session_pb2.SwapRequest, context: grpc.ServicerContext
    ) -> Iterator[session_pb2.SwapEvent]:
        try:
            swap = self._desk.ask(request.model)
        except UsageError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except SessionError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        told = 0
        # A caller who goes does not stop it.
        while context.is_active():
            has_ended = swap.ended.wait(_POLL_S)
            for line in swap.lines[told:]:
                yield session_pb2.SwapEvent(who=line.who, phase=line.phase, detail=line.detail)
                told += 1
            if has_ended:
                break
        if (failure := swap.failure) is not None:
            yield session_pb2.SwapEvent(
                failure=str(failure), remedy=failure.remedy, exit_code=failure.exit_code
            )

    def Close(
        self, request: session_pb2.CloseRequest, context: grpc.ServicerContext
    ) -> session_pb2.CloseReply:
        self._close()
        return session_pb2.CloseReply()
