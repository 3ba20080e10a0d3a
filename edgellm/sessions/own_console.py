"""The console at a session's own endpoint. It is begun when somebody first looks: most sessions are never looked at, and what
it needs takes a second to import and some memory.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import structlog
import trio

from edgellm.p2p.network import Network
from edgellm.paths import default_paths
from edgellm.sessions.daemon_order import Order

log = structlog.get_logger(__name__)

_START_S = 30.0
_RETRY_S = 5.0
_POLL_S = 0.02


class OwnConsole:
    """Of one session, whose endpoint listens on `port`."""

    def __init__(self, order: Order, port: int, close: Callable[[], None]) -> None:
        """`close` has the session end."""
        self._order, self._port, self._close = order, port, close
        self._is_wanted = trio.Event()
        self._serves = trio.Event()
        self._socket = ""

    async def socket(self) -> str:
        """Where it serves. Raises TooSlowError where it does not begin to."""
        self._is_wanted.set()
        with trio.fail_after(_START_S):
            await self._serves.wait()
        return self._socket

    async def serve(self, network: Network) -> None:
        """Over the daemon's own place in the swarm, until it is cancelled. Whatever goes wrong in it, the session goes on."""
        await self._is_wanted.wait()
        while True:
            try:
                await trio.to_thread.run_sync(_import)
                await self._serve(network)
            except Exception:
                self._serves = trio.Event()
                log.exception("the session's console failed")
            await trio.sleep(_RETRY_S)

    async def _serve(self, network: Network) -> None:
        from edgellm.console.app import create_app
        from edgellm.console.attached import attached_sources
        from edgellm.console.guard import LOOPBACK, Rules, hosts_of
        from edgellm.console.membership import Place
        from edgellm.console.serving import serve_on_unix

        order = self._order
        rules = Rules(
            hosts=hosts_of(LOOPBACK, self._port),
            token=order.api_key,
            cookie=f"edgellm-console-{self._port}",
            cookie_value=secrets.token_urlsafe(32) if order.api_key else "",
        )
        place = Place(order.bootstrap, mdns=order.mdns, swarm=order.swarm)
        path = Path(order.directory) / "console.sock"
        async with attached_sources(
            network, default_paths(), order.name, place, self._close, isolation=order.isolation
        ) as sources:
            app = create_app(sources, rules)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_on_unix, app, path)
                while not path.exists():
                    await trio.sleep(_POLL_S)
                self._socket = str(path)
                self._serves.set()


def _import() -> None:
    import edgellm.console.app
    import edgellm.console.attached
    import edgellm.console.serving  # noqa: F401
