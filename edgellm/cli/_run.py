"""Runs a verb's trio program so that Ctrl-C cancels it in order: contexts close, cells die, leases are released."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import trio

from edgellm.errors import unwrapped


def run_interruptibly(work: Callable[[], Awaitable[None]]) -> None:
    """Runs `work`; SIGINT or SIGTERM cancels it. Raises KeyboardInterrupt once everything is torn down."""
    if trio.run(_run, work):
        raise KeyboardInterrupt


async def _run(work: Callable[[], Awaitable[None]]) -> bool:
    interrupted = False
    with unwrapped(), trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                nonlocal interrupted
                async for _ in signals:
                    interrupted = True
                    nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            await work()
            nursery.cancel_scope.cancel()
    return interrupted
