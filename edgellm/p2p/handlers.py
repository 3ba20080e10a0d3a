"""The guard around every stream handler: what one peer sends ends one stream, never the node."""

from __future__ import annotations

import logging

import trio

from edgellm.errors import NetworkError
from edgellm.p2p.network import Stream, StreamHandler

log = logging.getLogger(__name__)

_CLEANUP_S = 2.0


async def run_handler(protocol: str, handler: StreamHandler, stream: Stream) -> None:
    """Runs `handler` on `stream`; closes the stream after it, or resets it when it raises. Raises nothing.

    libp2p cancels the whole node when an exception leaves a handler, so none may.
    """
    finished = False
    try:
        await handler(stream)
        finished = True
    except NetworkError as error:
        log.debug("%s: stream of peer %s ended: %s", protocol, stream.peer, error)
    except Exception:
        log.exception("%s: the handler failed for peer %s", protocol, stream.peer)
    finally:
        with trio.CancelScope(deadline=trio.current_time() + _CLEANUP_S, shield=True):
            if finished:
                await stream.aclose()
            else:
                await stream.reset()
