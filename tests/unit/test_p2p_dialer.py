"""In which order a peer's addresses are tried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from edgellm.errors import NetworkError
from edgellm.p2p.dialer import Dialer
from edgellm.p2p.identity import Identity

DIRECT = "/ip4/192.168.1.7/tcp/4001"
RELAY, DOUBTFUL = Identity.generate().peer, Identity.generate().peer


def through(relay: str) -> str:
    return f"/ip4/45.9.0.1/tcp/4001/p2p/{relay}/p2p-circuit"


class Swarm:
    """Peers answer at `open_at`; others do not."""

    def __init__(self, open_at: set[str]) -> None:
        self.open_at = open_at
        self.tried: list[str] = []
        self.connected: list[Any] = []
        self.peerstore = SimpleNamespace(addrs=lambda _: [], add_addrs=lambda *_: None)

    def get_connections(self, peer_id: ID) -> list[Any]:
        return self.connected

    async def dial_addr(self, address: Multiaddr, peer_id: ID, source: Any = None) -> Any:
        return await self.reach(address)

    async def reach(self, address: Multiaddr, peer_id: ID | None = None) -> Any:
        self.tried.append(str(address))
        await trio.sleep(0.01)
        if str(address) not in self.open_at:
            raise OSError("refused")
        relayed = "/p2p-circuit" in str(address)
        connection = SimpleNamespace(
            is_closed=False,
            muxed_conn=SimpleNamespace(is_established=True),
            get_connection_type=lambda: ConnectionType.RELAYED if relayed else ConnectionType.DIRECT,
        )
        self.connected.append(connection)
        return connection


def dialer(swarm: Swarm, *own: str) -> Dialer:
    host = SimpleNamespace(
        get_network=lambda: swarm,
        get_id=lambda: ID.from_base58(RELAY),
        get_transport_addrs=lambda: [Multiaddr(address) for address in own],
        get_peerstore=lambda: swarm.peerstore,
    )
    made = Dialer(host)
    made.dial_circuit = swarm.reach
    made.doubtful = lambda address: DOUBTFUL in str(address)
    return made


PEER = Identity.generate().peer


async def test_a_relay_of_which_there_is_doubt_is_tried_when_all_else_has_failed() -> None:
    swarm = Swarm({through(DOUBTFUL)})
    await dialer(swarm).connect(PEER, [through(DOUBTFUL), through(RELAY), DIRECT])
    assert swarm.tried == [DIRECT, through(RELAY), through(DOUBTFUL)]


async def test_it_is_not_tried_where_another_way_is_open() -> None:
    swarm = Swarm({through(DOUBTFUL), through(RELAY)})
    await dialer(swarm).connect(PEER, [through(DOUBTFUL), through(RELAY)])
    assert swarm.tried == [through(RELAY)]


async def test_a_relayed_connection_is_none_where_a_direct_one_is_asked_for() -> None:
    swarm = Swarm({through(RELAY)})
    dialling = dialer(swarm)
    await dialling.connect(PEER, [through(RELAY)])
    with pytest.raises(NetworkError):
        await dialling.connect(PEER, [through(RELAY)], direct=True)
    swarm.open_at = {DIRECT}
    await dialling.connect(PEER, [through(RELAY), DIRECT], direct=True)
    assert swarm.tried == [through(RELAY), DIRECT]


LOOPBACK = "/ip4/127.0.0.1/tcp/22"
INWARD = (
    LOOPBACK,
    "/ip6/::1/tcp/22",
    "/ip6/::ffff:127.0.0.1/tcp/22",
    "/ip4/0.0.0.0/tcp/22",
    "/ip4/169.254.169.254/tcp/80",
    f"{LOOPBACK}/p2p/{RELAY}/p2p-circuit",
    # libp2p dials the last of them.
    f"{DIRECT}{LOOPBACK}",
    f"{DIRECT}{LOOPBACK}/p2p/{RELAY}/p2p-circuit",
    "/ip6zone/eth0/ip6/::1/tcp/22",
    "/dns4/a.example/tcp/22/ip4/127.0.0.1",
    "/dnsaddr/a.example",
)


async def test_no_peer_makes_a_machine_dial_itself() -> None:
    swarm = Swarm(set())
    with pytest.raises(NetworkError):
        await dialer(swarm, "/ip4/192.168.1.2/tcp/4001").connect(PEER, [*INWARD, DIRECT])
    assert swarm.tried == [DIRECT]


async def test_a_name_that_a_peer_tells_is_no_way_in_either(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "/dns4/inward.example/tcp/22": [LOOPBACK, "/ip4/169.254.169.254/tcp/80"],
        "/dns4/both.example/tcp/4001": [LOOPBACK, DIRECT],
        "/dns4/nobody.example/tcp/4001": None,
        "/dns4/later.example/tcp/22": ["/dns4/later.example/tcp/22"],
        "/dns/two.example/tcp/22": ["/dns/inward.example/tcp/22", f"{DIRECT}{LOOPBACK}"],
    }

    async def resolve(name: Multiaddr, **_: object) -> list[Multiaddr] | None:
        found = names[str(name)]
        return None if found is None else [Multiaddr(address) for address in found]

    monkeypatch.setattr("edgellm.p2p.dialer.resolve_multiaddr_with_retry", resolve)
    swarm = Swarm(set())
    own = "/ip4/192.168.1.2/tcp/4001"
    with pytest.raises(NetworkError, match="its name leads to no other machine"):
        await dialer(swarm, own).connect(PEER, list(names))
    assert swarm.tried == [DIRECT]
    swarm = Swarm(set())
    with pytest.raises(NetworkError):
        await dialer(swarm, own).connect(PEER, list(names), named=True)
    assert swarm.tried == list(names)


async def test_its_user_may_and_peers_of_one_machine_alone_do() -> None:
    swarm = Swarm({LOOPBACK})
    await dialer(swarm, "/ip4/192.168.1.2/tcp/4001").connect(PEER, [LOOPBACK], named=True)
    assert swarm.tried == [LOOPBACK]
    for own in ((), ("/ip4/127.0.0.1/tcp/4001",)):
        swarm = Swarm({LOOPBACK})
        await dialer(swarm, *own).connect(PEER, [LOOPBACK])
        assert swarm.tried == [LOOPBACK]
