"""The whole product where nobody can connect to anybody: requester and hosts behind routers of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.system.internet import Internet, Nat
from tests.system.leftovers import Snapshot
from tests.system.machine import Machine
from tests.system.process import Process
from tests.system.solo import Solo
from tests.system.swarm import ASK_TIMEOUT_S, START_TIMEOUT_S, TINY
from tests.system.swarm import _use as as_if_used_before
from tests.system.test_answer import PROMPT, PROMPTS
from tests.system.test_answer import TOKENS as REFERENCE_TOKENS

TOKENS = 32


@pytest.fixture
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with Internet(visible=[tmp_path_factory.getbasetemp()]) as internet:
        yield internet
        internet.end_all()


def start_relay(machine: Machine) -> str:
    said = machine.start(["edgellm", "relay"]).wait_for(r"--relay (/ip4/45\.\S+)", START_TIMEOUT_S)
    return said[1]


def start_host(machine: Machine, bootstrap: str) -> Process:
    lending = ["--allow-anyone", "--memory", "2GiB", "--threads", "1", "--grace", "0"]
    return machine.start(["edgellm", "host", "--model", str(TINY), "--bootstrap", bootstrap, *lending])


@pytest.mark.parametrize(
    ("nat", "hosts", "relayed"),
    [("port restricted", 1, False), ("symmetric", 2, True)],
    ids=["punched", "relayed"],
)
def test_a_question_is_answered_across_routers(
    internet: Internet, solo: Solo, nat: Nat, hosts: int, relayed: bool
) -> None:
    public = internet.add("relay")
    names = ["alice", "bob"][:hosts]
    machines = [internet.behind(internet.router(f"of-{name}", nat), name) for name in names]
    carol = internet.behind(internet.router("of-carol", nat), "carol")
    for machine in (public, *machines, carol):
        as_if_used_before(machine)
        internet.before |= Snapshot.take([machine])
    relay = start_relay(public)
    lending = [start_host(machine, relay) for machine in machines]
    for host in lending:
        host.wait_for(r"reached +relayed: through relay", START_TIMEOUT_S)
        host.wait_for(r"join through it: --bootstrap", START_TIMEOUT_S)

    done = carol.run(["edgellm", "peers", "--bootstrap", relay, "--json"]).check()
    seen = {peer["name"]: bool(peer["relay"]) for peer in json.loads(done.stdout)}
    assert seen == dict.fromkeys(names, relayed)

    question = [
        "edgellm",
        "ask",
        PROMPT,
        "--raw",
        "--model",
        "tiny",
        "--bootstrap",
        relay,
        "--pp",
        str(hosts),
    ]
    answering = carol.run(
        [*question, "--temperature", "0", "--max-tokens", str(TOKENS), "--json"], timeout_s=ASK_TIMEOUT_S
    ).check()
    answer = json.loads(answering.stdout)
    reference = solo.answers(TINY, PROMPTS, REFERENCE_TOKENS)[PROMPTS.index(PROMPT)]
    assert tuple(answer["token_ids"]) == reference.token_ids[:TOKENS]
    assert [bool(hop["relay"]) for hop in answer["route"]] == [relayed] * hosts
    assert ("through relay" in answering.stderr) == relayed
