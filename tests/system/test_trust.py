"""Three honest hosts and one that computes with other weights than it promises: it is caught, and nobody else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.coarse_model import coarse_copy
from tests.system.lan import Lan
from tests.system.machine import REPOSITORY, Machine
from tests.system.swarm import ASK_TIMEOUT_S, CACHE, MEASURED, TINY, Swarm, error_of

pytestmark = pytest.mark.root

LYING_HOST = Path(__file__).with_name("lying_host.py")
CHECK_TIMEOUT_S = 300.0
PROMPT = "The import statement"
HONEST = ("alice", "bob", "dora")


@pytest.fixture(scope="module")
def swarm(module_lan: Lan, tmp_path_factory: pytest.TempPathFactory) -> Swarm:
    """Mallory's machine computes with three bits a weight and says of itself that it is the fastest, to be chosen: the others
    say so little that a token's weights take longer than any way to them.
    """
    other = coarse_copy(TINY, tmp_path_factory.mktemp("lie") / "tiny", bits=3)
    swarm = Swarm(module_lan)
    [first] = swarm.start_hosts("zoe")  # measures what the others change
    first.machine.stop_all()
    machines = {name: swarm.machine(name) for name in (*HONEST, "mallory")}
    for name, machine in machines.items():
        say_times(machine, 10 if name == "mallory" else 0.02)
    machines["mallory"].environment["PYTHONPATH"] = str(REPOSITORY)
    hosts = [swarm.start_host(machines[name]) for name in HONEST]
    hosts.append(swarm.start_host(machines["mallory"], program=("python", str(LYING_HOST), str(other))))
    for host in hosts:
        host.wait_ready()
    assert swarm.peers()["mallory"]["devices"][0]["flops"] > 5 * swarm.peers()["alice"]["devices"][0]["flops"]
    return swarm


def say_times(machine: Machine, factor: float) -> None:
    """Has the machine's host say that it is so many times as fast as was measured."""
    pattern = r'("(?:bandwidth_bytes_s|flops)":\s*)([\d.e+]+)'
    files = list((machine.home / CACHE).glob(MEASURED))
    assert files
    for file in files:
        file.write_text(
            re.sub(pattern, lambda found: f"{found[1]}{float(found[2]) * factor}", file.read_text())
        )


def trust(swarm: Swarm) -> dict[str, dict[str, Any]]:
    done = swarm.requester.run(["edgellm", "peers", "--trust", "--json"]).check()
    return {host["name"]: host for host in json.loads(done.stdout)}


def test_an_honest_pair_is_borne_out_and_signs(swarm: Swarm) -> None:
    named = [word for name in HONEST for word in ("--peers", name)]
    argv = swarm.ask(PROMPT, "--raw", "--max-tokens", "32", "--pp", "2", "--spot-check", "1", *named)
    done = swarm.requester.run(argv, timeout_s=CHECK_TIMEOUT_S).check()
    assert re.search(r"checked: .* compute the same", done.stderr), done.stderr
    known = trust(swarm)
    assert set(known) == set(HONEST)
    assert all((host["checks_passed"], host["checks_failed"]) == (1, 0) for host in known.values())
    assert sorted(host["tokens"] for host in known.values()) == [0, 32, 32]
    assert not any(host["unsigned"] for host in known.values())
    alice = next(machine for machine in swarm.lan.machines if machine.name == "alice")
    [lease] = json.loads(alice.run(["edgellm", "peers", "--lent", "--json"]).check().stdout)
    assert (lease["ended"], lease["tokens"]) == ("released", known["alice"]["tokens"])


def test_a_liar_in_a_pipeline_is_caught_and_left_out(swarm: Swarm) -> None:
    # Sampled, so that logprobs are what is compared; with a second host, from which it has to be told.
    question = [
        "ask",
        PROMPT,
        "--model",
        "tiny",
        "--raw",
        "--max-tokens",
        "48",
        "--temperature",
        "0.8",
        "--json",
    ]
    done = swarm.requester.run(
        swarm.command(question[0], *question[1:], "--pp", "2", "--spot-check", "1"), timeout_s=CHECK_TIMEOUT_S
    ).check()
    assert "mallory" in [hop["name"] for hop in json.loads(done.stdout)["route"]], done.stderr
    assert "caught: mallory computed wrongly" in done.stderr, done.stderr
    known = trust(swarm)
    assert known["mallory"]["state"] == "caught"
    assert all(known[name]["state"] == "trusted" for name in HONEST)

    done = swarm.requester.run(
        swarm.command(question[0], *question[1:], "--pp", "3"), timeout_s=ASK_TIMEOUT_S
    ).check()
    assert sorted(hop["name"] for hop in json.loads(done.stdout)["route"]) == sorted(HONEST)
    assert "mallory is left out" in done.stderr

    shown = swarm.requester.run(["edgellm", "peers", "--trust"]).check().stdout
    assert re.search(r"mallory .*caught: .*ago", shown), shown
    refused = swarm.requester.run(swarm.ask(PROMPT, "--peers", "mallory"))
    error, remedy = error_of(refused)
    assert "left out for what it did before" in error
    assert "--forgive" in remedy
    swarm.requester.run(["edgellm", "peers", "--forgive", "mallory"]).check()
    assert trust(swarm)["mallory"]["state"] != "caught"
