"""What a session's daemon is told to do. By itself, so that the CLI can write one without importing the daemon."""

from __future__ import annotations

import msgspec


class Order(msgspec.Struct, frozen=True):
    """What a daemon is to do."""

    name: str
    model: str
    directory: str
    bootstrap: tuple[str, ...]
    idle_s: float
    mdns: bool = False
    isolation: str = "bwrap"
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    peers: tuple[str, ...] = ()
    fabric: str = "overlay"
    context: int | None = None
    sequences: int = 8
    kv_scope: str | None = None
    port: int = 0
    """Of the endpoint on 127.0.0.1; 0: any that is free."""
    api_key: str | None = None
    """What clients of the endpoint must say; None: nothing."""
    max_cost_s: float = 0.0
    """Host-seconds that may be lent to it; 0: no limit."""
