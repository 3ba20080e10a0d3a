"""Peers of the swarm that lie, babble and flood: a good host is found among them, and answers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.lan import Lan
from tests.system.process import Process
from tests.system.solo import Solo
from tests.system.swarm import ASK_TIMEOUT_S, START_TIMEOUT_S, TINY, Swarm, error_of

HOSTILE = Path(__file__).with_name("hostile_peers.py")
PROMPT = "The with statement is used"
MAX_NODE_BYTES = 150 << 20

LOOK_TWICE = """
import json, sys, time, trio
from edgellm.discovery.collect import SequenceBook, find_hosts
from edgellm.p2p.identity import Identity
from edgellm.p2p.node import NodeConfig, open_node

async def main():
    book = SequenceBook()
    config = NodeConfig(Identity.generate(), (), bootstrap=(sys.argv[1],), dht_server=False)
    async with open_node(config) as network:
        for _ in range(2):
            found = await find_hosts(network, "tiny", book=book, now=time.time)
            names = sorted(sighting.advert.name for sighting in found.sightings)
            print(json.dumps([names, found.refused]))

trio.run(main)
"""


@pytest.fixture(scope="module")
def swarm(module_lan: Lan) -> Swarm:
    swarm = Swarm(module_lan)
    swarm.start_hosts("alice")
    return swarm


@pytest.fixture(scope="module")
def hostile(swarm: Swarm) -> Iterator[Process]:
    """Eight bad peers in the swarm, which have attacked alice and the meeting point on every protocol."""
    alice = swarm.peers()["alice"]
    host = next(machine for machine in swarm.lan.machines if machine.name == "alice")
    argv = [swarm.address, alice["models"][0]["digest"], alice["peer"], f"/ip4/{host.address}/tcp/4001"]
    mallory = swarm.lan.add("mallory")
    with mallory.start(
        [sys.executable, str(HOSTILE), *argv], env={"PYTHONPATH": str(TINY.parents[1])}
    ) as process:
        process.wait_for("^up$", START_TIMEOUT_S)
        attacked = process.wait_for(r"^attacked (\d+)$", START_TIMEOUT_S)
        assert attacked[1] == "30", (
            "three kinds on seven protocols of the host and three of the meeting point"
        )
        yield process


def test_only_good_adverts_are_shown_and_the_others_counted(swarm: Swarm, hostile: Process) -> None:
    done = swarm.requester.run(swarm.command("peers")).check()
    assert "alice" in done.stdout
    assert "mallory" not in done.stdout
    said = re.search(r"(\d+) listed; not shown: (.*)", done.stderr)
    assert said is not None, done.stderr
    counted = {why: int(count) for count, why in re.findall(r"(\d+) ([a-z ]+)", said[2])}
    assert int(said[1]) == 9
    # Too long and babble are malformed.
    assert counted == {"forged": 1, "expired": 1, "from the future": 1, "malformed": 2, "unreachable": 1}

    done = swarm.requester.run(
        [sys.executable, "-c", LOOK_TWICE, swarm.address], env={"PYTHONPATH": str(TINY.parents[1])}
    ).check()
    (names, refused), (later_names, later_refused) = map(json.loads, done.stdout.splitlines())
    assert names == ["alice", "liar", "rewinder"]
    assert later_names == ["alice", "liar"]
    assert later_refused == {**refused, "replayed": 1}


def test_garbage_instead_of_a_lease_is_one_clear_line(swarm: Swarm, hostile: Process) -> None:
    done = swarm.requester.run(swarm.ask(PROMPT, "--peers", "liar"))
    error, remedy = error_of(done)
    assert error.startswith("host liar did not grant a lease: ")
    assert "edgellm peers" in remedy


def test_a_good_host_answers_among_them(swarm: Swarm, hostile: Process, solo: Solo) -> None:
    [expected] = solo.answers(TINY, [PROMPT], 64)
    argv = swarm.ask(PROMPT, "--raw", "--json", "--max-tokens", "64", "--pp", "1")

    done = swarm.requester.run(argv, timeout_s=ASK_TIMEOUT_S).check()

    answer = json.loads(done.stdout)
    assert [hop["name"] for hop in answer["route"]] == ["alice"]
    assert tuple(answer["token_ids"]) == expected.token_ids
    for machine in (swarm.meeting_point, swarm.lan.machines[2]):
        [node] = [process for process in machine.processes if process.returncode is None]
        assert node.pid is not None
        status = Path(f"/proc/{node.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        assert int(peak[1]) << 10 < MAX_NODE_BYTES, f"{machine.name} has grown"
