"""The end of a node: prompt, bounded, and with the error that caused it instead of nests of groups."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

log = logging.getLogger(__name__)

GOODBYE_S = 0.8  # for saying goodbye to every peer, at once
END_S = 1.8  # for all of the end


@contextmanager
def bounded() -> Iterator[Callable[[], None]]:
    """Runs its body without limit until the function it gives is called, from then on for `END_S` at most."""
    with trio.CancelScope() as scope:

        def ending() -> None:
            scope.deadline = trio.current_time() + END_S

        yield ending
    if scope.cancelled_caught:
        log.warning("the libp2p node did not end within %g s and was cut off", END_S)


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raises the one error inside an exception group instead of the group.

    The nurseries of the node and of libp2p wrap what the body raises; callers wait for the error itself.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors = [leaf for leaf in _leaves(group) if not isinstance(leaf, trio.Cancelled)]
        if len(errors) == 1:
            raise errors[0] from errors[0].__cause__
        raise


async def close_connections(swarm: Any) -> None:
    """Closes all connections and listeners of a libp2p swarm within `GOODBYE_S`, politely where a peer answers."""
    connections = [connection for peer in swarm.connections.values() for connection in peer]
    swarm._closing = True
    with trio.CancelScope(shield=True):
        with trio.move_on_after(GOODBYE_S):
            async with trio.open_nursery() as nursery:
                for listener in tuple(swarm.listeners.values()):
                    nursery.start_soon(_quietly, listener.close)
                for connection in connections:
                    nursery.start_soon(_quietly, connection.close)
        for connection in connections:
            if not connection.muxed_conn.is_closed:
                with trio.move_on_after(0.1):
                    await _quietly(connection.muxed_conn.secured_conn.close)
        swarm.connections.clear()


async def cut_connections(connections: list[Any]) -> None:
    """Ends these connections within a second, whatever their peers do."""
    with trio.CancelScope(shield=True):
        for connection in connections:
            # First, so that nothing that is still in a buffer is acted on.
            connection.muxed_conn.drop("is let in no longer")
        with trio.move_on_after(GOODBYE_S):
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(_quietly, connection.close)
        for connection in connections:
            with trio.move_on_after(0.1):
                await _quietly(connection.muxed_conn.secured_conn.close)


async def _quietly(close: Callable[[], Any]) -> None:
    try:
        await close()
    except Exception:
        log.debug("closing failed", exc_info=True)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
