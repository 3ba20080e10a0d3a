"""The second fabric: plain TCP between machines of a trusted LAN, with the sandbox and without."""

from __future__ import annotations

import json

import pytest

from tests.system.lan import Lan
from tests.system.solo import Solo
from tests.system.swarm import ASK_TIMEOUT_S, START_TIMEOUT_S, TINY, Swarm, error_of
from tests.system.test_answer import PROMPT, PROMPTS
from tests.system.test_answer import TOKENS as REFERENCE_TOKENS

TOKENS = 48


@pytest.mark.parametrize("isolation", ["bwrap", "none"])
def test_hosts_of_a_trusted_lan_talk_plain_tcp(lan: Lan, solo: Solo, isolation: str) -> None:
    """As in docker-compose.yml: found by multicast, no addresses given."""
    swarm = Swarm(lan)
    options = ("--network", "direct", "--isolation", isolation)
    machines = [swarm.machine(name) for name in ("alice", "bob")]
    lending = ["--allow-anyone", "--memory", "2GiB", "--threads", "1", "--grace", "0"]
    hosts = [
        machine.start(["edgellm", "host", "--model", str(TINY), "--mdns", *lending, *options])
        for machine in machines
    ]
    for host in hosts:
        host.wait_for(r"join through it: --bootstrap", START_TIMEOUT_S)
    question = ["edgellm", "ask", PROMPT, "--raw", "--model", "tiny", "--mdns", "--pp", "2"]
    done = swarm.requester.run(
        [*question, "--temperature", "0", "--max-tokens", str(TOKENS), "--json", "-q", *options],
        timeout_s=ASK_TIMEOUT_S,
    ).check()
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    reference = solo.answers(TINY, PROMPTS, REFERENCE_TOKENS)[PROMPTS.index(PROMPT)]
    assert tuple(answer["token_ids"]) == reference.token_ids[:TOKENS]
    assert [(hop["first_layer"], hop["end_layer"]) for hop in answer["route"]][-1][1] == 8


def test_the_direct_fabric_is_never_chosen_silently(lan: Lan) -> None:
    swarm = Swarm(lan)
    swarm.start_hosts("alice")
    done = swarm.requester.run(swarm.ask(PROMPT, "--network", "direct"), timeout_s=ASK_TIMEOUT_S)
    error, remedy = error_of(done)
    assert "direct" in error
    assert "--network" in remedy
