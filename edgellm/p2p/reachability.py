"""Whether others can connect to this node, from what they say. Pure.

A peer can lie, so no single stranger is believed: it takes two at different addresses, or one whom the owner named
(a bootstrap peer). A lie of all of them does no more than make this node use a relay that it does not need, or none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgellm.p2p.addresses import ip_endpoint, is_public, tcp_multiaddr

Way = Literal["direct", "mapped", "relayed", "unreachable", "unknown"]
NEEDED = 2
"""Votes; a peer that the owner named has this many."""
MAX_CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """How one peer sees this node."""

    peer: str
    host: str
    """The peer's own IP address."""
    as_host: str
    as_port: int
    """Of this node, as the peer sees it; 0 where that is a port that serves nobody but this one connection."""
    protocols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    """A port of the router that leads to this machine."""

    host: str
    port: int
    inside_port: int
    by: str
    """"UPnP" or "NAT-PMP"."""


@dataclass(frozen=True, slots=True)
class DialBack:
    """What a peer said that was asked to connect to this node."""

    peer: str
    host: str
    """The peer's IP address: all peers there count as one."""
    named: bool
    reached: str
    """The multiaddr at which it got through; "" where it did not."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which way others reach this node, and why that is believed."""

    way: Way
    why: str
    addresses: tuple[str, ...] = ()
    """Direct ones that others got through to."""
    remedy: str = ""
    contested: bool = False
    """Others say that they did not get through: a relay helps if those who did are liars."""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.way == "unreachable" and self.remedy else ""
        return f"{self.way}: {self.why}{remedy}"

    @property
    def needs_relay(self) -> bool:
        return self.contested or self.way in ("relayed", "unreachable")


def candidates(
    own: Iterable[str], seen: Sequence[Seen], mappings: Sequence[Mapping], port: int
) -> tuple[str, ...]:
    """Addresses at which this node might be reached, the likeliest first: it listens on `port`, has its machine's `own`."""
    likely = [
        tcp_multiaddr(mapping.host, mapping.port) for mapping in mappings if mapping.inside_port == port
    ]
    for sight in seen:
        likely += [tcp_multiaddr(sight.as_host, each) for each in (sight.as_port, port) if each]
    return tuple(dict.fromkeys((*likely, *own)))[:MAX_CANDIDATES]


def confirmed(backs: Sequence[DialBack]) -> tuple[str, ...]:
    """The addresses that enough peers got through to."""
    votes: dict[str, dict[str, int]] = defaultdict(dict)
    for back in backs:
        if back.reached:
            voters = votes[back.reached]
            voters[back.host] = max(voters.get(back.host, 0), NEEDED if back.named else 1)
    return tuple(address for address, voters in votes.items() if sum(voters.values()) >= NEEDED)


def verdict(
    backs: Sequence[DialBack],
    mappings: Sequence[Mapping],
    *,
    relays: Sequence[str],
    announced: Sequence[str] = (),
) -> Verdict:
    """`relays` are the peer ids of those at which this node has a place; `announced` where its owner says it is."""
    # Who is on the same network knows nothing of the way in from outside.
    outside = [back for back in backs if is_public(back.host)]
    heard = outside or backs
    addresses = confirmed(heard)
    if addresses:
        asked = len({back.host for back in heard if back.reached in addresses})
        peers = f"{asked} peer{'s' if asked != 1 else ''}"
        mapped = {tcp_multiaddr(mapping.host, mapping.port): mapping.by for mapping in mappings}
        by = next((mapped[address] for address in addresses if address in mapped), "")
        failed = len({back.host for back in heard if not back.reached})
        if failed:
            peers += f" ({failed} did not)"
        if by:
            why = f"{by} opened {_plain(addresses)}, and {peers} got through"
            return Verdict("mapped", why, addresses, contested=bool(failed))
        where = "" if outside else ", all on this network: none from outside has tried"
        why = f"{peers} got through to {_plain(addresses)}{where}"
        return Verdict("direct", why, addresses, contested=bool(failed))
    if not heard:
        return _unheard(mappings, relays, announced)
    hosts = len({back.host for back in heard})
    tried = f"{hosts} peer{'s' if hosts != 1 else ''} could not connect to this machine"
    some = next((back.reached for back in heard if back.reached), "")
    if some:
        tried = f"only one stranger says that it got through to {_plain([some])}"
    if mappings:
        tried += f"; {mappings[0].by} opened {mappings[0].host} port {mappings[0].port}, to which nobody got through"
    if relays:
        return Verdict("relayed", f"through {_relays(relays)} only: {tried}", remedy=OPEN_A_PORT)
    return Verdict("unreachable", f"{tried}, and no relay has a place for it", remedy=OPEN_A_PORT)


OPEN_A_PORT = (
    "forward the TCP port in the router and say so with --announce, or switch UPnP on there, "
    "or name a relay: --relay MULTIADDR"
)


def _unheard(mappings: Sequence[Mapping], relays: Sequence[str], announced: Sequence[str]) -> Verdict:
    if relays:
        return Verdict("relayed", f"through {_relays(relays)}; nobody could say whether directly, too")
    if announced:
        return Verdict("unknown", f"its owner says at {_plain(announced)}; no peer has tried yet")
    public = [mapping for mapping in mappings if is_public(mapping.host)]
    if public:
        said = f"{public[0].by} opened {public[0].host} port {public[0].port}; no peer has tried it yet"
        return Verdict("mapped", said, tuple(tcp_multiaddr(each.host, each.port) for each in public))
    return Verdict("unknown", "no peer has tried yet to connect to this machine")


def _plain(addresses: Sequence[str]) -> str:
    endpoints = [ip_endpoint(address) for address in addresses]
    return ", ".join(f"{each[0]} port {each[1]}" for each in endpoints if each) or ", ".join(addresses)


def _relays(relays: Sequence[str]) -> str:
    return f"relay{'s' if len(relays) != 1 else ''} " + ", ".join(f"…{relay[-8:]}" for relay in relays)
