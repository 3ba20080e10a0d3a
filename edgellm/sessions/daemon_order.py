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
    min_tok_s: float | None = None
    max_load: float | None = None
    spot_check: float | None = None
    """What `edgellm.trust.share.check_share` is told."""
    owner_pid: int = 0
    """The session closes itself when this process is gone; 0: it belongs to none."""
    owner_started: float = 0.0
    """As `edgellm.sessions.registry.SessionRecord.process_started`."""
    spares: int = 0
    """Hosts that stand by."""
    patience_s: float = 600.0
    """How long others are looked for when a host is lost."""
    silence_s: float = 4.0
    """A host that says nothing for so long is lost."""
    swarm: str = ""
    """What this user calls the private swarm that it is in; empty: the open one."""
    max_cost_s: float = 0.0
    """Host-seconds that may be lent to it; 0: no limit."""
    spent_s: float = 0.0
    """Of these, what daemons of the same session before it have used."""
    journal: str = ""
    """A file from which the session can be brought back; "": it cannot."""
    recovers: bool = False
    """Whether that file is there already. It then stays if the session does not open."""
