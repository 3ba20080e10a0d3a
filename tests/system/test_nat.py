"""Peers behind real NAT (nftables): who is reached which way, what a relay gives a stranger, and what a hostile one can do."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from tests.system.internet import MINIUPNPD, Internet, Nat, Router
from tests.system.leftovers import Snapshot
from tests.system.machine import REPOSITORY, Machine
from tests.system.process import Process
from tests.system.swarm import _use as as_if_used_before

START_S = 60.0
CIRCUIT_BYTES = 200_000
needs_miniupnpd = pytest.mark.skipif(MINIUPNPD is None, reason="miniupnpd is not installed")


@pytest.fixture
def internet() -> Iterator[Internet]:
    with Internet(visible=[REPOSITORY]) as internet:
        yield internet
        internet.end_all()
        for router in internet.routers:
            if router.upnp is not None:
                router.upnp.end_now()


def start(machine: Machine, role: str, *options: str) -> Process:
    argv = [sys.executable, "-m", "tests.system.nat_peer", role, *options]
    return machine.start(argv, env={"PYTHONPATH": str(REPOSITORY)})


def start_relay(machine: Machine, *options: str) -> str:
    said = start(machine, "relay", *options).wait_for(r'^\{"address": .*\}$', START_S)
    return str(json.loads(said[0])["address"])


def way_of(process: Process, way: str, timeout_s: float = START_S) -> dict[str, Any]:
    """What a serving peer says once it is reached that way."""
    said: dict[str, Any] = json.loads(process.wait_for(rf'^\{{"way": "{way}".*\}}$', timeout_s)[0])
    return said


def dialled(machine: Machine, *options: str) -> list[dict[str, Any]]:
    done = start(machine, "dial", *options).wait(120.0).check()
    return [json.loads(line) for line in done.stdout.splitlines()]


def behind(internet: Internet, name: str, nat: Nat) -> tuple[Router, Machine]:
    router = internet.router(f"of-{name}", nat)
    return router, internet.behind(router, name)


@pytest.mark.parametrize(
    ("hosts", "askers", "way", "direct"),
    [
        ("full cone", "symmetric", "direct", True),
        ("port restricted", "port restricted", "relayed", True),
        ("port restricted", "symmetric", "relayed", False),
        ("symmetric", "symmetric", "relayed", False),
    ],
)
def test_a_peer_behind_a_router_is_found_and_reached(
    internet: Internet, hosts: Nat, askers: Nat, way: str, direct: bool
) -> None:
    relay = start_relay(internet.add("relay"))
    router, host = behind(internet, "host", hosts)
    _, asker = behind(internet, "asker", askers)
    found = way_of(start(host, "serve", "--bootstrap", relay), way)
    own = f"/ip4/{router.address}/tcp/4001"
    assert found["addresses"] == ([own] if way == "direct" else [])
    assert any("/p2p-circuit" in address for address in found["listed"]) == (way == "relayed")
    results = dialled(asker, "--bootstrap", relay, "--bytes", "100000", "1000000")
    assert [result["same"] for result in results] == [True, True]
    assert [result["relay"] == "" for result in results] == [direct, direct]


def test_a_direct_way_outlasts_the_relay_that_helped_to_find_it(internet: Internet) -> None:
    machine = internet.add("relay")
    relay = start_relay(machine)
    _, host = behind(internet, "host", "port restricted")
    _, asker = behind(internet, "asker", "port restricted")
    way_of(start(host, "serve", "--bootstrap", relay), "relayed")
    asking = start(asker, "dial", "--bootstrap", relay, "--bytes", "1000", "1000", "--pause", "4")
    asking.wait_for('"same": true', START_S)
    machine.processes[0].kill()
    results = [json.loads(line) for line in asking.wait(60).check().stdout.splitlines()]
    assert [(result["relay"], result["same"]) for result in results] == [("", True), ("", True)]


def test_relays_are_found_in_the_dht(internet: Internet) -> None:
    meeting_point = start_relay(internet.add("meet"), "--no-relay")
    relay = start_relay(internet.add("relay"), "--bootstrap", meeting_point)
    _, host = behind(internet, "host", "symmetric")
    _, asker = behind(internet, "asker", "symmetric")
    found = way_of(start(host, "serve", "--bootstrap", meeting_point), "relayed")
    assert any(address.startswith(f"{relay}/p2p-circuit") for address in found["listed"])
    (result,) = dialled(asker, "--bootstrap", meeting_point)
    assert (result["relay"], result["same"]) == (relay.rpartition("/")[2], True)


def test_another_relay_is_used_when_one_is_gone(internet: Internet) -> None:
    first, second = internet.add("first"), internet.add("second")
    staying = start_relay(first)
    start_relay(second, "--bootstrap", staying)
    _, host = behind(internet, "host", "symmetric")
    _, asker = behind(internet, "asker", "symmetric")
    found = way_of(start(host, "serve", "--bootstrap", staying), "relayed")
    assert sum("/p2p-circuit" in address for address in found["listed"]) == 2
    second.processes[0].kill()
    results = dialled(asker, "--bootstrap", staying, "--bytes", "1000", "1000")
    assert results[-1]["same"]
    assert results[-1]["relay"] == staying.rpartition("/")[2]


@needs_miniupnpd
@pytest.mark.parametrize("by", ["UPnP", "NAT-PMP"])
def test_a_router_that_maps_ports_makes_a_peer_reachable(
    internet: Internet, by: Literal["UPnP", "NAT-PMP"]
) -> None:
    relay = start_relay(internet.add("relay"))
    router, host = behind(internet, "host", "port restricted")
    internet.with_miniupnpd(router, by)
    serving = start(host, "serve", "--bootstrap", relay, "--overlay-port", "5005")
    found = way_of(serving, "mapped")
    assert found["addresses"] == [f"/ip4/{router.address}/tcp/4001"]
    assert found["why"].startswith(f"{by} opened {router.address} port 4001")
    assert f"dport 5005 dnat ip to {host.address}:5005" in internet.mapped_ports(router)
    (result,) = dialled(internet.add("asker"), "--bootstrap", relay)
    assert (result["relay"], result["same"]) == ("", True)
    serving.stop()
    assert "dnat" not in internet.mapped_ports(router).replace("ct status dnat", "")


def test_a_stranger_gets_no_more_of_a_relay_than_its_limits(internet: Internet) -> None:
    limits = ["--circuit-bytes", str(CIRCUIT_BYTES), "--circuits", "2", "--places", "1"]
    relay = start_relay(internet.add("relay"), *limits)
    _, host = behind(internet, "host", "symmetric")
    _, asker = behind(internet, "asker", "symmetric")
    way_of(start(host, "serve", "--bootstrap", relay), "relayed")
    # The second is more than a circuit may carry; its end costs that circuit alone.
    results = dialled(asker, "--bootstrap", relay, "--bytes", "10000", str(10 * CIRCUIT_BYTES), "10000")
    assert [result.get("same", False) for result in results] == [True, False, True]
    assert results[1]["error"]
    # There is one place, and it is taken.
    _, other = behind(internet, "other", "symmetric")
    refused = way_of(start(other, "serve", "--bootstrap", relay), "unreachable")
    assert "no relay has a place" in refused["why"]


def test_a_circuit_ends_when_its_time_is_over(internet: Internet) -> None:
    relay = start_relay(internet.add("relay"), "--circuit-s", "3")
    _, host = behind(internet, "host", "symmetric")
    _, asker = behind(internet, "asker", "symmetric")
    way_of(start(host, "serve", "--bootstrap", relay), "relayed")
    begun = time.monotonic()
    results = dialled(asker, "--bootstrap", relay, "--bytes", "1000", "1000", "--hold", "10")
    assert results[0]["held_s"] < 9
    assert results[1]["same"]
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("how", ["drop", "delay", "garble", "lie"])
def test_a_hostile_relay_costs_an_attempt_at_most(internet: Internet, how: str) -> None:
    honest = start_relay(internet.add("honest"))
    hostile = start_relay(internet.add("hostile"), "--bootstrap", honest, "--hostile", how)
    _, host = behind(internet, "host", "symmetric")
    _, asker = behind(internet, "asker", "symmetric")
    serving = start(host, "serve", "--bootstrap", honest)
    found = way_of(serving, "relayed")
    # One stranger that says that it got through does not make this peer one that is reached directly.
    assert found["addresses"] == []
    assert any(address.startswith(f"{hostile}/p2p-circuit") for address in found["listed"])
    results = dialled(asker, "--bootstrap", honest, "--bytes", *["50000"] * 3, "--patience", "10")
    assert [result for result in results if "error" not in result and not result["same"]] == []
    assert [result.get("same") for result in results][1:] == [True, True]
    assert results[-1]["relay"] == honest.rpartition("/")[2]


def test_a_hostile_relay_alone_is_an_error_soon(internet: Internet) -> None:
    relay = start_relay(internet.add("hostile"), "--hostile", "drop")
    _, host = behind(internet, "host", "symmetric")
    _, asker = behind(internet, "asker", "symmetric")
    way_of(start(host, "serve", "--bootstrap", relay), "relayed")
    begun = time.monotonic()
    (result,) = dialled(asker, "--bootstrap", relay)
    assert "error" in result
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("nat", "way", "status"), [("symmetric", "relayed", "warn"), ("full cone", "direct", "ok")]
)
def test_the_doctor_says_which_way_a_machine_is_reached(
    internet: Internet, nat: Nat, way: str, status: str
) -> None:
    relay = start_relay(internet.add("relay"))
    _, host = behind(internet, "host", nat)
    as_if_used_before(host)
    internet.before |= Snapshot.take([host])
    done = host.run(["edgellm", "doctor", "--bootstrap", relay, "--json"])
    (reached,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "reached"]
    assert (reached["status"], reached["detail"].partition(":")[0]) == (status, way)
    assert ("--announce" in reached["remedy"]) == (way == "relayed")
