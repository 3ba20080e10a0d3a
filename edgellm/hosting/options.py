"""What the owner of a host asked for."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.cells.spec import Isolation
from edgellm.hosting.quota import Allowance
from edgellm.leasing.policy import MEMBERS, Policy


@dataclass(frozen=True, slots=True)
class HostOptions:
    models: tuple[str, ...]
    """Directories or Hugging Face ids."""
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    bootstrap: tuple[str, ...] = ()
    devices: str | None = None
    memory_bytes: int | None = None
    max_leases: int = 1
    name: str = ""
    """Empty: the machine's host name."""
    fabrics: tuple[str, ...] = ("overlay",)
    isolation: Isolation = "bwrap"
    threads: int | None = None
    """CPU threads for engines; None: all."""
    mdns: bool = False
    announce: tuple[str, ...] = ()
    """Addresses to tell others instead of the machine's own (a forwarded port)."""
    relays: tuple[str, ...] = ()
    """Peers through which a machine is reached that nobody can connect to."""
    map_ports: bool = True
    """Ask the router, by UPnP or NAT-PMP, for ports that lead here."""
    overlay_port: int = 0
    """TCP port for direct overlay connections; 0: any free one for each lease."""
    kv_quota_bytes: int | None = None
    """Disk for KV blocks of requesters; 0: none; None: `default_kv_quota` decides."""
    ipfs: str = ""
    """Multiaddr of the RPC of an IPFS daemon that keeps them instead; empty: this node does."""
    quota: tuple[Allowance, ...] = ()
    """How much is lent in a period; empty: as much as is asked for."""
    grace_s: float = 30.0
    """How long running leases may go on after the first Ctrl-C, and in a pause."""
    until: float | None = None
    """Unix time at which it stops by itself; None: when it is told to."""
    backend: str = "vllm"
    swarm: str = ""
    """What this user calls the private swarm to lend in; empty: the open one."""
    policy: Policy = MEMBERS
    """Whom to lend to."""


_MOST_KV_BYTES = 20 << 30


def default_kv_quota(free_bytes: int) -> int:
    """Disk for KV blocks where the owner said nothing: a tenth of what is free, at most 20 GiB."""
    return min(_MOST_KV_BYTES, max(0, free_bytes) // 10)
