"""Mapping ports of a router that is not there: what is asked, kept and given back."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
import trio

from edgellm.p2p import port_mapping
from edgellm.p2p.port_mapping import PortMapper
from edgellm.p2p.reachability import Mapping


class Router:
    by = "UPnP"

    def __init__(self) -> None:
        self.refused: set[int] = set()
        self.mapped: dict[int, int] = {}
        self.asked = 0

    def add(self, port: int) -> Mapping | None:
        self.asked += 1
        if port in self.refused:
            raise Exception("ConflictInMappingEntry")  # as miniupnpc does
        self.mapped[port] = port
        return Mapping("45.9.0.201", port, port, self.by)

    def remove(self, mapping: Mapping) -> None:
        del self.mapped[mapping.port]


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Router:
    router = Router()
    monkeypatch.setattr(port_mapping, "find_router", lambda: router)
    return router


async def test_ports_are_mapped_while_it_runs_and_given_back(router: Router) -> None:
    mapper = PortMapper((4001, 0, 5005, 4001))
    async with mapper.run():
        with trio.fail_after(5):
            await mapper.tried.wait()
        assert set(router.mapped) == {4001, 5005}
        assert [mapping.inside_port for mapping in mapper.mappings] == [4001, 5005]
    assert router.mapped == {}
    assert mapper.mappings == ()


async def test_a_lease_is_renewed_before_it_ends(
    router: Router, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    assert port_mapping.RENEW_S * 2 < port_mapping.LEASE_S
    mapper = PortMapper((4001,))
    # Threads take no time by a clock that jumps.
    monkeypatch.setattr(trio.to_thread, "run_sync", _at_once)
    async with mapper.run():
        await trio.sleep(port_mapping.LEASE_S * 2 + 1)
        assert router.asked == 7


async def test_a_port_that_is_refused_is_left_out(router: Router) -> None:
    router.refused = {4001}
    mapper = PortMapper((4001, 5005))
    async with mapper.run():
        with trio.fail_after(5):
            await mapper.tried.wait()
        assert [mapping.inside_port for mapping in mapper.mappings] == [5005]


async def test_ports_are_given_back_by_who_is_cancelled(router: Router) -> None:
    mapper = PortMapper((4001,))
    with trio.move_on_after(5) as scope:
        async with mapper.run():
            await mapper.tried.wait()
            scope.cancel()
            await trio.sleep_forever()
    assert router.mapped == {}


async def _at_once(function, *arguments, abandon_on_cancel: bool = False):  # type: ignore[no-untyped-def]
    return function(*arguments)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A router that speaks NAT-PMP, on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as serving:
        serving.bind(("127.0.0.1", 0))
        monkeypatch.setattr(port_mapping, "_NAT_PMP_PORT", serving.getsockname()[1])
        yield serving


def answer(serving: socket.socket, *answers: bytes) -> threading.Thread:
    def serve() -> None:
        for each in answers:
            _, asker = serving.recvfrom(64)
            serving.sendto(each, asker)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


ADDRESS = struct.pack("!BBHI4s", 0, 128, 0, 7, socket.inet_aton("45.9.0.201"))


def test_a_nat_pmp_router_maps_a_port(gateway: socket.socket) -> None:
    answering = answer(gateway, ADDRESS, struct.pack("!BBHIHHI", 0, 130, 0, 7, 4001, 31000, 3600))
    router = port_mapping._find_nat_pmp("127.0.0.1")
    assert router is not None
    assert router.add(4001) == Mapping("45.9.0.201", 31000, 4001, "NAT-PMP")
    answering.join()


@pytest.mark.parametrize(
    "said",
    [b"", b"\0\x82", struct.pack("!BBHIHHI", 0, 130, 2, 7, 4001, 31000, 3600)],
    ids=["nothing", "short", "no"],
)
def test_a_nat_pmp_router_that_talks_nonsense_or_refuses_maps_none(
    gateway: socket.socket, said: bytes
) -> None:
    answering = answer(gateway, ADDRESS, *[said] * (3 if len(said) < 16 else 1))
    router = port_mapping._find_nat_pmp("127.0.0.1")
    assert router is not None
    with pytest.raises(OSError, match="router"):
        router.add(4001)
    answering.join()
