"""What the owner of a host asked for."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.cells.spec import Isolation


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
    overlay_port: int = 0
    """TCP port for direct overlay connections; 0: any free one for each lease."""
    grace_s: float = 30.0
    """How long running leases may go on after the first Ctrl-C."""
    backend: str = "vllm"
