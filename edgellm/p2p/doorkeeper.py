"""Who decides which peers a node has to do with. The border between the node and private swarms: imports neither.

A node without a doorkeeper is in the open swarm, and takes everybody.
"""

from __future__ import annotations

from typing import Protocol

from edgellm.types.member import Member


class Greeting(Protocol):
    """A connection right after its handshake, before any protocol: whole messages, encrypted, to a peer that is proven."""

    @property
    def peer(self) -> str:
        """The base58 id of the other side."""

    @property
    def handshake(self) -> bytes:
        """The hash of the handshake: the same on both sides, and on no other connection."""

    @property
    def source(self) -> str:
        """The IP address that the other side connects from; empty where it is not known (behind a relay)."""

    async def send(self, message: bytes) -> None:
        """Sends a message of less than 64 KiB."""

    async def receive(self, max_bytes: int) -> bytes:
        """The next message. Raises NetworkError for a longer one, and where the other side is gone."""


class Doorkeeper(Protocol):
    """Lets peers in or not: where it raises EdgeError the connection is closed, and nothing else is ever said on it."""

    @property
    def beacon_key(self) -> bytes:
        """32 bytes that those who are let in share: closes what is announced on the local network to all others."""

    async def inbound(self, greeting: Greeting) -> None:
        """Returns once a peer that has connected is let in; is to take no longer than a second over one that is not."""

    async def outbound(self, greeting: Greeting) -> None:
        """Returns once the peer that was dialled is let in, and has let this one in."""

    def member(self, peer: str) -> Member | None:
        """Who a peer that was let in is."""
