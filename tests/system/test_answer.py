"""Borrowed machines answer: a meeting point, hosts and a requester, each on a machine of its own."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.lan import Lan
from tests.system.machine import Machine
from tests.system.process import Completed
from tests.system.solo import Solo, SoloAnswer
from tests.system.swarm import ASK_TIMEOUT_S, TINY, Swarm

PROMPT = "The with statement is used"
# Of its first 160 tokens none is closer than 0.8 to the next likely one. Elsewhere it may be 0.125, a unit in the last
# place of a bfloat16 logit, and then devices that add their partial sums in another order may well choose the other.
DECIDED_PROMPT = "Exceptions are"
PROMPTS = (PROMPT, DECIDED_PROMPT, "Functions that return")
TOKENS = 160
ENDLESS = 1900


@pytest.fixture(scope="module")
def swarm(module_lan: Lan) -> Iterator[Swarm]:
    swarm = Swarm(module_lan)
    dave = swarm.start_host(swarm.machine("dave"), "--devices", "2", memory="4GiB")
    swarm.start_hosts("alice", "bob")
    dave.wait_ready()
    yield swarm
    assert {peer["free_leases"] for peer in swarm.peers().values()} == {1}


@pytest.fixture(scope="module")
def reference(solo: Solo) -> dict[str, SoloAnswer]:
    """What the engine says alone in one process, for each of the prompts."""
    return dict(zip(PROMPTS, solo.answers(TINY, PROMPTS, TOKENS), strict=True))


def ask(machine: Machine, argv: list[str], input: str = "") -> Completed:
    return machine.run(argv, timeout_s=ASK_TIMEOUT_S, input=input).check()


def question(swarm: Swarm, *options: str, prompt: str = PROMPT) -> list[str]:
    return swarm.ask(prompt, "--raw", "--max-tokens", str(TOKENS), *options)


def test_two_hosts_answer_like_one_process(swarm: Swarm, reference: dict[str, SoloAnswer]) -> None:
    done = ask(swarm.requester, question(swarm, "--pp", "2", "--peers", "alice", "--peers", "bob"))

    assert done.stdout == reference[PROMPT].text + "\n", "nothing but the answer, all of it, goes to stdout"
    phases = re.findall(r"^ *\d+\.\d s  (\S+) +(\S+)", done.stderr, re.MULTILINE)
    assert {("here", "discover"), ("here", "plan"), ("here", "lease")} <= set(phases)
    assert {who for who, _ in phases} == {"here", "head", "alice", "bob"}
    summary = next(line for line in done.stderr.splitlines() if line.startswith("TTFT"))
    route = dict(re.findall(r"(alice|bob) layers (\d+-\d+)", summary))
    layers = sorted(tuple(map(int, layers.split("-"))) for layers in route.values())
    assert set(route) == {"alice", "bob"}
    assert layers[0][0] == 0
    assert layers[1] == (layers[0][1] + 1, 7)
    assert re.search(r"\d+ tok/s|\d+\.\d tok/s", summary)
    assert f"{TOKENS} tokens" in summary


def test_peers_and_models_show_what_is_lent(swarm: Swarm) -> None:
    peers = swarm.peers()
    assert set(peers) == {"alice", "bob", "dave"}
    assert {name: len(peer["devices"]) for name, peer in peers.items()} == {"alice": 1, "bob": 1, "dave": 2}
    assert len({peer["peer"] for peer in peers.values()}) == 3
    for host in swarm.lan.machines:
        if host.name in peers:
            peer = peers[host.name]
            assert any(f"/ip4/{host.address}/tcp/4001" in address for address in peer["addresses"])
            assert peer["free_memory_bytes"] == (4 if host.name == "dave" else 2) << 30
            assert not peer["draining"]
            assert [model["name"] for model in peer["models"]] == ["tiny"]

    [model] = json.loads(swarm.requester.run(swarm.command("models", "--json")).check().stdout)
    assert (model["name"], model["layers"], model["max_context"]) == ("tiny", 8, 2048)
    assert set(model["hosts"]) == set(peers)
    assert {model["digest"]} == {peer["models"][0]["digest"] for peer in peers.values()}

    for verb in ("peers", "models"):
        shown = swarm.requester.run(swarm.command(verb)).check()
        assert all(name in shown.stdout for name in ("alice", "bob", "dave", "tiny"))


def sessions(machine: Machine) -> dict[str, dict[str, Any]]:
    listed = json.loads(machine.run(["edgellm", "session", "list", "--json"]).check().stdout)
    return {session["name"]: session for session in listed}


def test_a_session_of_three_hosts_answers_token_by_token_the_same_without_bring_up_and_closes(
    swarm: Swarm, reference: dict[str, SoloAnswer]
) -> None:
    carol = swarm.requester
    argv = swarm.command(
        "session open", "--model", "tiny", "--name", "mine", "--pp", "3", "--context", "2048"
    )
    opened = carol.run(argv, timeout_s=ASK_TIMEOUT_S).check()
    try:
        assert opened.stdout == "mine\n"
        state = sessions(carol)["mine"]
        assert (state["model"], state["state"], state["running_requests"]) == ("tiny", "ready", 0)
        assert "layers 0-" in state["route"]
        assert {peer["free_leases"] for peer in swarm.peers().values()} == {0}

        greedy = ("--session", "mine", "--raw", "-q", "--temperature", "0")
        for prompt in PROMPTS:
            argv = ["edgellm", "ask", prompt, *greedy, "--json", "--max-tokens", str(TOKENS)]
            done = carol.run(argv).check()
            assert done.stderr == ""
            assert done.duration_s < 10, "a session asks without bring-up"
            answer = json.loads(done.stdout)
            assert tuple(answer["token_ids"]) == reference[prompt].token_ids
            assert answer["text"] == reference[prompt].text
            assert answer["prompt_tokens"] == len(reference[prompt].prompt_token_ids)
        assert {hop["name"] for hop in answer["route"]} == {"alice", "bob", "dave"}
        ends = [0, *(hop["end_layer"] for hop in answer["route"])]
        assert [hop["first_layer"] for hop in answer["route"]] == ends[:-1]
        assert ends[-1] == 8

        done = carol.run(["edgellm", "ask", *greedy, "--max-tokens", str(TOKENS)], input=PROMPT).check()
        assert (done.stdout, done.stderr) == (reference[PROMPT].text + "\n", "")

        taken = carol.run(swarm.command("session open", "--model", "tiny", "--name", "mine"))
        assert (taken.returncode, taken.stderr.count("error:")) == (1, 1)

        a_killed_client_frees_its_slot(carol)
    finally:
        closed = carol.run(["edgellm", "session", "close", "mine"])
    assert closed.returncode == 0, closed.stderr
    assert sessions(carol) == {}
    assert {peer["free_leases"] for peer in swarm.peers().values()} == {1}
    gone = carol.run(["edgellm", "ask", PROMPT, "--session", "mine"])
    assert (gone.returncode, gone.stderr.count("error:")) == (1, 1)


def a_killed_client_frees_its_slot(carol: Machine) -> None:
    argv = ["edgellm", "ask", PROMPT, "--session", "mine", "--raw", "--temperature", "0"]
    client = carol.start([*argv, "--max-tokens", str(ENDLESS)])
    client.wait_for(r"block", stream="stdout")
    assert sessions(carol)["mine"]["running_requests"] == 1
    client.kill()
    client.wait()
    deadline = time.monotonic() + 5
    while sessions(carol)["mine"]["running_requests"]:
        assert time.monotonic() < deadline, "the request of a client that is gone still runs"


def test_two_devices_of_a_host_answer_the_same_in_a_session_that_ends_when_idle(
    swarm: Swarm, reference: dict[str, SoloAnswer]
) -> None:
    carol = swarm.requester
    argv = swarm.command("session open", "-q", "--model", "tiny", "--tp", "2", "--pp", "1", "--idle", "4s")
    name = carol.run(argv, timeout_s=ASK_TIMEOUT_S).check().stdout.strip()
    assert sessions(carol)[name]["closes_in_s"] <= 4

    argv = ["edgellm", "ask", DECIDED_PROMPT, "--session", name, "--raw", "--json", "--temperature", "0"]
    answer = json.loads(carol.run([*argv, "--max-tokens", str(TOKENS)]).check().stdout)
    assert [hop["name"] for hop in answer["route"]] == ["dave"]
    assert tuple(answer["token_ids"][:32]) == reference[DECIDED_PROMPT].token_ids[:32]
    assert len(answer["token_ids"]) == TOKENS

    deadline = time.monotonic() + 15
    while sessions(carol):
        assert time.monotonic() < deadline, "the session is still open"
        time.sleep(0.2)
    assert {peer["free_leases"] for peer in swarm.peers().values()} == {1}
