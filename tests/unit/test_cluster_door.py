"""Where other members are told to find this one's door."""

from __future__ import annotations

import pytest

from edgellm.cluster import door
from edgellm.cluster.door import open_door, reachable_hosts
from edgellm.types.plan import Endpoint

RELAYED = "/ip4/45.9.0.1/tcp/4001/p2p/12D3KooWRELAY/p2p-circuit/p2p/12D3KooWHOST"


@pytest.fixture(autouse=True)
def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_interface_hosts", lambda: ["127.0.0.1", "192.168.1.7"])


def test_a_relays_address_is_not_this_machines() -> None:
    assert reachable_hosts(("/ip4/192.168.1.7/tcp/4001", RELAYED)) == ("192.168.1.7",)
    assert reachable_hosts((RELAYED,)) == ("192.168.1.7",)


def test_the_machines_own_address_goes_before_its_routers() -> None:
    addresses = ("/ip4/45.9.0.201/tcp/4001", "/ip4/192.168.1.7/tcp/4001")
    assert reachable_hosts(addresses) == ("192.168.1.7", "45.9.0.201")


def test_a_port_that_a_router_maps_is_told_too() -> None:
    with open_door(("192.168.1.7",), mapped=lambda port: ("45.9.0.201", 5005)) as opened:
        port = opened.listener.getsockname()[1]
        assert opened.endpoints == (Endpoint("192.168.1.7", port), Endpoint("45.9.0.201", 5005))
