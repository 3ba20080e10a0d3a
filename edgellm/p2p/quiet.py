"""libp2p's log, which is loud, in this product's log at debug level; nothing of it on stdout or stderr."""

from __future__ import annotations

import logging

from libp2p.network.connection import swarm_connection

log = logging.getLogger("edgellm.p2p.libp2p")


class _AsDebug(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.debug("%s: %s", record.name, record.getMessage(), exc_info=record.exc_info)


def quiet_libp2p() -> None:
    """Routes all of libp2p's loggers to `edgellm.p2p.libp2p` at debug level."""
    wanted = logging.DEBUG if log.isEnabledFor(logging.DEBUG) else logging.CRITICAL
    for name in ("libp2p", "multiaddr"):
        logger = logging.getLogger(name)
        logger.handlers = [_AsDebug()]
        logger.propagate = False
        logger.setLevel(wanted)
    logging.getLogger("libp2p.network.auto_connector").setLevel(logging.NOTSET)
    # This module logs through the root logger, which puts a handler on stderr when there is none.
    swarm_connection.logging = logging.getLogger("libp2p.network.connection")
