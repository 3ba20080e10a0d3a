"""Noticing that the node has become a zombie: connected, and serving nobody."""

from __future__ import annotations

from collections.abc import Callable

import trio

from edgellm.errors import NetworkError

TASKS_INTERVAL_S = 2.0
LISTENER_INTERVAL_S = 60.0
LISTENER_TIMEOUT_S = 10.0
_HELLO = b"\x13/multistream/1.0.0\n"  # what both sides of a libp2p connection say first


async def watch(tasks_alive: Callable[[], bool], listeners: Callable[[], list[tuple[str, int]]]) -> None:
    """Returns never; raises NetworkError when libp2p's tasks have ended or a listener no longer answers."""
    next_hello = trio.current_time() + LISTENER_INTERVAL_S
    while True:
        await trio.sleep(TASKS_INTERVAL_S)
        if not tasks_alive():
            raise _zombie("its tasks have ended")
        if trio.current_time() >= next_hello:
            for host, port in listeners():
                await _say_hello(host, port)
            next_hello = trio.current_time() + LISTENER_INTERVAL_S


async def _say_hello(host: str, port: int) -> None:
    with trio.move_on_after(LISTENER_TIMEOUT_S):
        try:
            async with await trio.open_tcp_stream(host, port) as stream:
                await stream.send_all(_HELLO)
                if await stream.receive_some(len(_HELLO)):
                    return
        except OSError as error:
            raise _zombie(f"{host} port {port}: {error}") from error
    raise _zombie(f"{host} port {port} does not answer")


def _zombie(why: str) -> NetworkError:
    return NetworkError(f"the libp2p node has stopped serving: {why}", remedy="start it again")
