"""Figures of an endpoint for Prometheus; those of its engine come with them."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from edgellm.gateway.guard import ROUTES
from edgellm.gateway.state import Ready, State

log = structlog.get_logger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ENGINE_PATH = "http://engine/edgellm/metrics"
ENGINE_S = 2.0


class Figures:
    """Of one endpoint since it began; the engine's begin anew with each cluster."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "edgellm_gateway_requests", "Requests that were answered", ("path", "status"), registry=registry
        )
        self._running = Gauge(
            "edgellm_gateway_requests_running", "Requests that hold a place", registry=registry
        )
        self._connections = Gauge("edgellm_gateway_connections", "Open connections", registry=registry)

    def answered(self, path: str, status: int) -> None:
        """A request is over; status 0: its client went before the answer began."""
        self._requests.labels(path if path in ROUTES else "other", str(status)).inc()

    def watch(self, running: Callable[[], int], connections: Callable[[], int]) -> None:
        """What to ask when somebody wants to know."""
        self._running.set_function(running)
        self._connections.set_function(connections)

    async def text(self, state: State) -> bytes:
        """In Prometheus' text format, the engine's included where it answers."""
        own = generate_latest(self._registry)
        return own + await _of_engine(state.socket) if isinstance(state, Ready) else own


async def _of_engine(socket: str) -> bytes:
    # Not needed by those who only ask questions.
    import httpx

    transport = httpx.AsyncHTTPTransport(uds=socket)
    try:
        with trio.fail_after(ENGINE_S):
            async with httpx.AsyncClient(transport=transport, timeout=ENGINE_S) as engine:
                answer = await engine.get(ENGINE_PATH)
    except (httpx.HTTPError, trio.TooSlowError) as error:
        log.warning("the engine tells no figures", error=repr(error))
        return b""
    return answer.content if answer.status_code == 200 else b""
