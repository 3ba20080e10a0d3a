"""The border to the network: what everything above `edgellm.p2p` may use, and all of it.

Behind it stand `edgellm.p2p.node` (real) and `edgellm.testing.memory_network` (tests). Imports no libp2p.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from edgellm.p2p.identity import Identity
from edgellm.types.member import Member

WRITE_STALL_S = 60.0  # how long `send_all` waits for a reader; longer than an engine's imports stop one


@dataclass(frozen=True)
class PeerAddress:
    """Where a peer said it can be reached; a claim by others, proven only by connecting.

    `peer` is the base58 peer id; `addresses` are multiaddrs without their trailing `/p2p/<peer>`.
    """

    peer: str
    addresses: tuple[str, ...] = ()


class Stream(Protocol):
    """One bidirectional byte stream to one authenticated peer.

    A stream whose peer died ends just like one that was closed: a conversation needs its own last message.
    A reader that pauses for more than a minute makes the other side's `send_all` fail: keep reading.
    One task may send while another receives; not two of the same kind.
    """

    @property
    def peer(self) -> str:
        """The base58 id of the other side, proven by the connection's handshake."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Sends all of `data`. Raises NetworkError when the stream is broken or the peer does not read."""

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """1 to `max_bytes` bytes, or b"" at the end. Raises NetworkError when the stream was reset."""

    async def aclose(self) -> None:
        """Ends the sending side; never raises NetworkError, never takes longer than a second or two."""

    async def reset(self) -> None:
        """Drops both directions at once; never raises NetworkError."""


StreamHandler: TypeAlias = Callable[[Stream], Awaitable[None]]


class Network(Protocol):
    """A peer on the network: streams to others, handlers for theirs, and the DHT's provider records."""

    @property
    def identity(self) -> Identity:
        """The keys of this peer (for envelopes and for TLS links that the same key authenticates)."""

    @property
    def peer(self) -> str:
        """This peer's base58 id."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others can reach this peer: full multiaddrs, each ending in `/p2p/<peer>`."""

    async def open_stream(
        self, peer: str, protocol: str, *, addresses: Sequence[str] = (), timeout_s: float = 10.0
    ) -> Stream:
        """A new stream of `protocol` to `peer`, connecting first when there is no connection.

        `addresses` are tried besides those already known. Raises NetworkError that names peer and cause.
        """

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Calls `handler` for every stream that others open with `protocol`, one task each.

        The stream is closed when the handler returns and reset when it raises; an exception ends only its own
        stream and is logged. Serving a protocol again replaces its handler.
        """

    async def provide(self, key: str) -> None:
        """Announces that this peer has `key`, and keeps announcing it until `withdraw` or the end."""

    def withdraw(self, key: str) -> None:
        """Stops announcing `key`. Others may list this peer until its records expire (about 20 min)."""

    async def find_providers(self, key: str) -> tuple[PeerAddress, ...]:
        """Who announced `key`, without duplicates; some may be gone: contact them before believing it."""

    async def connect(self, multiaddr: str, *, timeout_s: float = 10.0) -> str:
        """Connects to `multiaddr` (which must end in `/p2p/<peer>`); the peer's id. Raises NetworkError."""

    def mapped_port(self, port: int) -> tuple[str, int] | None:
        """The IP address and port of the router that lead to TCP `port` of this machine; None where none does."""

    def relay_of(self, peer: str) -> str:
        """The id of the relay through which alone `peer` is connected; "" where it is connected directly or not at all."""

    def connected_peers(self) -> frozenset[str]:
        """The ids of all peers that have a connection to this one now."""

    def member(self, peer: str) -> Member | None:
        """Who a connected peer is in the private swarm; None in the open one, which knows no members."""

    async def drop(self, peer: str) -> None:
        """Ends all connections to `peer`, with every stream on them. Raises nothing; takes a second at most."""
