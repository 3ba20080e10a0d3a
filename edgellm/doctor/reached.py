"""Which way others reach this machine: a peer is run for a moment, and those that it meets try to connect to it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import trio

from edgellm.errors import EdgeError
from edgellm.p2p.identity import Identity
from edgellm.p2p.node import NodeConfig, open_node
from edgellm.p2p.reachability import Verdict

PATIENCE_S = 20.0


def how_reached(listen: tuple[str, ...], bootstrap: tuple[str, ...]) -> Verdict:
    """Raises EdgeError where no peer can be run or met."""
    return trio.run(_ask, listen, bootstrap)


async def _ask(listen: tuple[str, ...], bootstrap: tuple[str, ...]) -> Verdict:
    # An identity of its own: a host that runs here has this machine's.
    config = NodeConfig(
        Identity.generate(),
        listen=listen,
        bootstrap=bootstrap,
        dht_server=False,
        stay_reachable=True,
        map_ports=True,
        bootstrap_timeout_s=5.0,
    )
    with _quiet(), trio.move_on_after(PATIENCE_S):
        async with open_node(config) as network:
            assert network.reach is not None
            await network.reach.known.wait()
            return network.reach.verdict
    raise EdgeError(f"it was not known after {PATIENCE_S:g} s")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("edgellm.p2p")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
