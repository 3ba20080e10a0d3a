"""Which peers to join the swarm through: said now, said by the environment, or remembered from the last time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgellm.errors import UsageError

ENVIRONMENT = "EDGELLM_BOOTSTRAP"
MAX_REMEMBERED = 16


def bootstrap_peers(said: Sequence[str], state: Path) -> tuple[str, ...]:
    """Multiaddrs to join through: `said`, else those of EDGELLM_BOOTSTRAP (comma-separated), else those remembered.

    Raises UsageError for an address that names no peer.
    """
    environment = [part.strip() for part in os.environ.get(ENVIRONMENT, "").split(",") if part.strip()]
    addresses = tuple(dict.fromkeys(said or environment or _remembered(state)))
    for address in addresses:
        if not _names_a_peer(address):
            raise UsageError(
                f"{address!r} is no address of a peer",
                remedy="give one as a host prints it: /ip4/192.168.1.7/tcp/4001/p2p/12D3Koo...",
            )
    return addresses


def require_bootstrap(said: Sequence[str], state: Path, *, mdns: bool) -> tuple[str, ...]:
    """As `bootstrap_peers`; raises UsageError when there is none and multicast is not to find any either."""
    addresses = bootstrap_peers(said, state)
    if not addresses and not mdns:
        raise UsageError(
            "no peer of the swarm is known yet",
            remedy="give the address that a host prints: --bootstrap ADDRESS (it is remembered), or use --mdns",
        )
    return addresses


def remember(addresses: Sequence[str], state: Path) -> None:
    """Keeps addresses that worked for the next time."""
    (state / "bootstrap").write_text("".join(f"{address}\n" for address in addresses[:MAX_REMEMBERED]))


def forget(addresses: Sequence[str], state: Path) -> None:
    """Keeps addresses no longer, as they lead to what is going."""
    known = _remembered(state)
    if not set(known).isdisjoint(addresses):
        remember([address for address in known if address not in addresses], state)


def _remembered(state: Path) -> list[str]:
    """What was kept; nothing where the file cannot be read, as the user has not said it now and cannot be blamed for it."""
    try:
        addresses = (state / "bootstrap").read_text().split()
    except (OSError, UnicodeDecodeError):
        return []
    return [address for address in addresses if _names_a_peer(address)]


def _names_a_peer(address: str) -> bool:
    return address.startswith("/") and "/p2p/" in address
