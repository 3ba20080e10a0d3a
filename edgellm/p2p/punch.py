"""Hole punching: from a connection through a relay to a direct one between two peers that accept none (DCUtR).

Both dial each other at the same moment from the ports that their routers let the other's answers in through; the two
dials become one connection (TCP simultaneous open). It works where routers map a port alike for all destinations.

Who took the relayed connection begins, and is the server of the direct one, so that the roles of the handshake are
clear. py-libp2p 0.8.1's own dials any address that a peer names, and guesses its own ports where it could ask.

Spec: https://github.com/libp2p/specs/blob/master/relay/DCUtR.md
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.dcutr import PROTOCOL_ID as DCUTR
from libp2p.relay.circuit_v2.dcutr import read_dcutr_msg
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.relay.circuit_v2.utils import write_delimited_msg
from multiaddr import Multiaddr

from edgellm.p2p.addresses import ip_endpoint, is_public, tcp_multiaddr, written
from edgellm.p2p.connections import LISTENING_PORT, direct_connections, is_relayed
from edgellm.p2p.identify import ask_how_seen
from edgellm.p2p.reachability import Seen

log = logging.getLogger(__name__)

MESSAGE_TIMEOUT_S = 4.0
PUNCH_S = 4.0
"""For which both sides dial."""
ATTEMPTS = 2
RETRY_S = 0.3
MAX_ADDRESSES = 4
MAX_ASKED = 3
MAX_AT_ONCE = 16
GRACE_S = 30.0
"""How long a relayed connection stays that is not needed any more."""
_MAX_SYNC_DELAY_S = 2.0


class HolePuncher:
    """Upgrades relayed connections of one libp2p host, whose direct dials come from `port` of its own."""

    def __init__(self, host: Any, port: Callable[[], int], announced: Sequence[str] = ()) -> None:
        self._host = host
        self._swarm = host.get_network()
        self._port = port
        self._announced = [address for address in announced if ip_endpoint(address)]
        self._under_way: dict[ID, trio.Event] = {}
        self._slots = trio.CapacityLimiter(MAX_AT_ONCE)
        host.set_stream_handler(DCUTR, self._answer)

    def expect(self, peer_id: ID) -> None:
        """A relayed connection to `peer_id` was made from here: its side begins within a moment."""
        self._under_way.setdefault(peer_id, trio.Event())

    async def settled(self, peer_id: ID, timeout_s: float) -> None:
        """Returns once it is known whether `peer_id` is reached directly, or after `timeout_s`."""
        event = self._under_way.get(peer_id)
        if event is None:
            return
        with trio.move_on_after(timeout_s) as waited:
            while not event.is_set() and not direct_connections(self._swarm, peer_id):
                with trio.move_on_after(0.05):
                    await event.wait()
        if waited.cancelled_caught:
            # Whoever comes next does not wait once more for what does not come.
            self._over(peer_id)

    async def upgrade(self, peer_id: ID) -> None:
        """Tries to reach `peer_id` directly, which has come through a relay. Raises nothing."""
        if self._slots.available_tokens < 1 or peer_id in self._under_way:
            return
        self._under_way[peer_id] = trio.Event()
        try:
            async with self._slots:
                for _ in range(ATTEMPTS):
                    if await self._begin(peer_id):
                        log.info("peer %s is reached directly now", peer_id)
                        break
        finally:
            self._over(peer_id)
        if direct_connections(self._swarm, peer_id):
            await trio.sleep(GRACE_S)
            await self._close_unused(peer_id)

    async def _begin(self, peer_id: ID) -> bool:
        if direct_connections(self._swarm, peer_id):
            return True
        stream = None
        try:
            own = await self._own_addresses()
            with trio.fail_after(MESSAGE_TIMEOUT_S):
                stream = await self._host.new_stream(peer_id, [DCUTR])
                begun = trio.current_time()
                await write_delimited_msg(stream, _connect(own))
                answer = await read_dcutr_msg(stream, HolePunch)
                round_trip_s = trio.current_time() - begun
                theirs = punchable(answer.ObsAddrs)
                if answer.type != HolePunch.CONNECT or not theirs:
                    return False
                await write_delimited_msg(stream, HolePunch(type=HolePunch.SYNC))
            await trio.sleep(min(round_trip_s / 2, _MAX_SYNC_DELAY_S))
            return await self._dial(peer_id, theirs, as_server=True)
        except Exception as error:  # noqa: BLE001 - the relayed connection stays what it is
            log.debug("no direct way to peer %s: %r", peer_id, error)
            return False
        finally:
            if stream is not None:
                await _reset(stream)

    async def _answer(self, stream: Any) -> None:
        """The other side of `_begin`."""
        peer_id = stream.muxed_conn.peer_id
        if not is_relayed(stream.muxed_conn) or self._slots.available_tokens < 1:
            await _reset(stream)
            return
        self.expect(peer_id)
        direct = False
        try:
            async with self._slots:
                with trio.fail_after(MESSAGE_TIMEOUT_S):
                    asked = await read_dcutr_msg(stream, HolePunch)
                    theirs = punchable(asked.ObsAddrs)
                    await write_delimited_msg(stream, _connect(await self._own_addresses()))
                    sync = await read_dcutr_msg(stream, HolePunch)
                if asked.type == HolePunch.CONNECT and sync.type == HolePunch.SYNC and theirs:
                    direct = await self._dial(peer_id, theirs, as_server=False)
        except Exception as error:  # noqa: BLE001 - as in `_begin`
            log.debug("no direct way to peer %s: %r", peer_id, error)
        finally:
            await _reset(stream)
            self._over(peer_id)
        log.debug("peer %s: direct: %s", peer_id, direct)

    async def _dial(self, peer_id: ID, addresses: Sequence[str], *, as_server: bool) -> bool:
        dial = self._swarm.dial_addr_as_responder if as_server else self._swarm.dial_addr

        async def attempt(address: str) -> None:
            source = ("::" if "/ip6/" in address else "0.0.0.0", self._port())
            while not direct_connections(self._swarm, peer_id):
                with suppress(Exception):
                    await dial(Multiaddr(address), peer_id, source)
                await trio.sleep(RETRY_S)
            nursery.cancel_scope.cancel()

        with trio.move_on_after(PUNCH_S):
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    nursery.start_soon(attempt, address)
        return bool(direct_connections(self._swarm, peer_id))

    async def _own_addresses(self) -> list[str]:
        """Where this node's port is seen from outside, as those say to whom it has connected from it."""
        if self._announced:
            return self._announced[:MAX_ADDRESSES]
        seen: list[Seen] = []

        async def ask(peer_id: ID) -> None:
            sight = await ask_how_seen(self._host, peer_id)
            if sight is not None:
                seen.append(sight)

        with trio.move_on_after(MESSAGE_TIMEOUT_S / 2):
            async with trio.open_nursery() as nursery:
                for peer_id in self._from_this_port()[:MAX_ASKED]:
                    nursery.start_soon(ask, peer_id)
        return own_outside(seen, self._port())

    def _from_this_port(self) -> list[ID]:
        """Peers that have connections from this node's port, relays among them: those know it as it looks from outside."""
        return [
            peer_id
            for peer_id in tuple(self._swarm.connections)
            if any(getattr(each, LISTENING_PORT, False) for each in direct_connections(self._swarm, peer_id))
        ]

    async def _close_unused(self, peer_id: ID) -> None:
        for connection in self._swarm.get_connections(peer_id):
            if is_relayed(connection) and not connection.get_streams():
                with suppress(Exception):
                    await connection.close()

    def _over(self, peer_id: ID) -> None:
        event = self._under_way.pop(peer_id, None)
        if event is not None:
            event.set()


def own_outside(seen: Iterable[Seen], port: int) -> list[str]:
    """Addresses to tell the other side: as seen, and with the same port as inside, which many routers keep."""
    public = [sight for sight in seen if is_public(sight.as_host)]
    exact = [tcp_multiaddr(sight.as_host, sight.as_port) for sight in public if sight.as_port]
    guessed = [tcp_multiaddr(sight.as_host, port) for sight in public]
    return list(dict.fromkeys((*exact, *guessed)))[:MAX_ADDRESSES]


def punchable(told: Sequence[bytes]) -> list[str]:
    """Of the addresses that a peer told, those that may be dialled: public ones, so that no peer has us knock at doors
    inside of our own network.
    """
    parsed = []
    for raw in told[: 4 * MAX_ADDRESSES]:
        with suppress(ValueError):
            parsed.append(Multiaddr(raw))
    addresses = [
        text for text in written(parsed) if (end := ip_endpoint(text)) and is_public(end[0]) and end[1]
    ]
    return list(dict.fromkeys(addresses))[:MAX_ADDRESSES]


class PunchPort:
    """The port that a node's dials to the internet come from: where it listens, or one kept free for this."""

    def __init__(self, listening: Callable[[], int]) -> None:
        self._listening = listening
        self._held: socket.socket | None = None

    def __call__(self) -> int:
        if (port := self._listening()) != 0:
            return port
        if self._held is None:
            self._held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._held.bind(("0.0.0.0", 0))
        return int(self._held.getsockname()[1])

    def close(self) -> None:
        if self._held is not None:
            self._held.close()


def _connect(addresses: Iterable[str]) -> Any:
    return HolePunch(
        type=HolePunch.CONNECT, ObsAddrs=[Multiaddr(address).to_bytes() for address in addresses]
    )


async def _reset(stream: Any) -> None:
    with suppress(Exception), trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
        await stream.reset()
