"""Who a connection belongs to in a private swarm."""

from __future__ import annotations

from dataclasses import dataclass

HOST, REQUESTER = "host", "requester"


@dataclass(frozen=True, slots=True)
class Member:
    """What a peer's certificates prove of it."""

    peer: str
    """The member's own id; the connection may be under one that it lent its name to for some minutes."""
    name: str
    """What it called itself when it joined."""
    roles: frozenset[str]
    """Of `HOST` and `REQUESTER`: what it may do here."""
    serial: str
    expires_at: float
    """Unix seconds."""
