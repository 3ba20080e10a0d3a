"""A long prompt is computed once: KV blocks between real hosts, what others can see of them, and hosts that fail meanwhile."""

from __future__ import annotations

import json
import pydoc_data.topics
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from edgellm_vllm.kv.settings import CHUNK_TOKENS

from tests.system.capture import captured
from tests.system.lan import Lan
from tests.system.machine import REPOSITORY, Machine
from tests.system.swarm import ASK_TIMEOUT_S, Host, Swarm

_TEXT = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
# About 1,000 tokens each; nothing of one is in another.
DOCUMENTS = [_TEXT[start : start + 3000] for start in range(5000, 105000, 20000)]
MODEL = "large"
DIES_AFTER_BYTES = 3 << 20
"""Of about seven million of the document's KV."""


@dataclass
class Hosts:
    swarm: Swarm
    alice: Host
    bob: Host

    def ask(self, document: str, peer: str, who: Machine | None = None) -> dict[str, Any]:
        """The answer on a cluster of its own on this one host, as JSON, with what was said about it."""
        argv = self.argv(document, "--peers", peer)
        done = (who or self.swarm.requester).run(argv, timeout_s=ASK_TIMEOUT_S).check()
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def argv(self, document: str, *options: str) -> list[str]:
        """The command of a question about a document."""
        words = ("--raw", "--kv-share", "--json", "--max-tokens", "12", "--pp", "1", "--context", "1536")
        return self.swarm.ask(document, *words, *options, model=MODEL)


@pytest.fixture(scope="module")
def hosts(module_lan: Lan, tmp_path_factory: pytest.TempPathFactory) -> Hosts:
    """A model whose prompts take seconds to compute, on two hosts."""
    model = tmp_path_factory.mktemp("models") / MODEL
    program = [sys.executable, "-m", "benchmarks.large_model", str(model), "--grouped"]
    subprocess.run(program, check=True, cwd=REPOSITORY)
    swarm = Swarm(module_lan)
    alice, bob = (
        swarm.start_host(swarm.machine(name), model=model, memory="3GiB") for name in ("alice", "bob")
    )
    return Hosts(swarm, alice.wait_ready(), bob.wait_ready())


def _blocks(host: Host) -> dict[str, bytes]:
    """The whole contents of a host's store, by CID."""
    directory = host.machine.home / ".cache/edgellm/kv/blocks"
    return {path.parent.name + path.name: path.read_bytes() for path in directory.glob("??/*")}


def _traces_of(document: str, token_ids: list[int]) -> list[bytes]:
    """What a look into somebody's bytes could tell the document by: pieces of its text, and of its token ids however stored."""
    texts = [document[start : start + 24].encode() for start in range(0, len(document) - 24, 200)]
    ids = [
        struct.pack(f"<4{size}", *token_ids[start : start + 4])
        for start in range(0, len(token_ids) - 4, 40)
        for size in "HIQ"
    ]
    return texts + ids


def _tokens_of(document: str) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(REPOSITORY / "models/tiny/tokenizer.json")).encode(document).ids
    return ids


def test_a_prompt_is_computed_once_and_nobody_else_learns_of_it(hosts: Hosts) -> None:
    document = DOCUMENTS[0]
    with captured(hosts.swarm.lan) as packets:
        first = hosts.ask(document, "alice")
        elsewhere = hosts.ask(document, "bob")
        again = hosts.ask(document, "alice")
        # The capture sees what is sent in the clear.
        control = document[:24].encode()
        hosts.alice.machine.run(
            [sys.executable, "-c", _SAY.format(to=hosts.bob.machine.address, what=control)]
        ).check()
    assert first["cached_prompt_tokens"] == 0
    assert first["kv_from"] == []
    whole = first["prompt_tokens"] // CHUNK_TOKENS * CHUNK_TOKENS
    for answer in (elsewhere, again):
        assert answer["cached_prompt_tokens"] == whole
        assert [(source["name"], source["tokens"]) for source in answer["kv_from"]] == [("alice", whole)]
    # The same KV with the same boundary, from a peer and from disk.
    assert elsewhere["token_ids"] == again["token_ids"]

    # Another requester has another scope: nothing for it to find, and of what it stores nothing is like what was there.
    before = _blocks(hosts.alice)
    stranger = hosts.swarm.machine("dave")
    other = hosts.ask(document, "alice", stranger)
    assert other["cached_prompt_tokens"] == 0
    assert other["token_ids"] == first["token_ids"]
    new = _blocks(hosts.alice).keys() - before.keys()
    assert len(new) == len(before) > 0

    traffic = b"".join(packets)
    assert control in traffic
    traces = _traces_of(document, _tokens_of(document))
    traffic = traffic.replace(control, b"")
    stored = b"".join(_blocks(hosts.alice).values()) + b"".join(_blocks(hosts.bob).values())
    assert len(traffic) > sum(map(len, before.values()))
    for trace in traces:
        assert trace not in traffic
        assert trace not in stored


_SAY = """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto({what!r}, ({to!r}, 9))
"""


def test_a_frozen_holder_costs_little_and_no_answer(hosts: Hosts) -> None:
    document = DOCUMENTS[1]
    assert hosts.ask(document, "alice")["cached_prompt_tokens"] == 0
    hosts.alice.machine.freeze()
    try:
        frozen = hosts.ask(document, "bob")
    finally:
        hosts.alice.machine.thaw()
    assert frozen["cached_prompt_tokens"] == 0
    thawed = hosts.ask(document, "bob")
    assert thawed["cached_prompt_tokens"] > 0
    # Computed on bob, and then from bob's own blocks.
    assert frozen["ttft_s"] < 3 * thawed["ttft_s"] + 10


def test_one_host_computes_the_prompt_and_another_answers(hosts: Hosts) -> None:
    document = DOCUMENTS[3]
    argv = hosts.argv(document, "--disaggregate", "always")
    done = hosts.swarm.requester.run(argv, timeout_s=ASK_TIMEOUT_S).check()
    answer = json.loads(done.stdout)
    steps = {step["what"]: step for step in answer["timeline"]}
    prefill, decode = steps["prefill"], steps["decode"]
    assert {prefill["hosts"][0], decode["hosts"][0]} == {"alice", "bob"}
    assert [hop["name"] for hop in answer["route"]] == decode["hosts"]
    whole = answer["prompt_tokens"] // CHUNK_TOKENS * CHUNK_TOKENS
    assert [(source["name"], source["tokens"]) for source in answer["kv_from"]] == [
        (prefill["hosts"][0], whole)
    ]
    assert prefill["end_s"] <= steps["KV blocks kept"]["end_s"] <= steps["first token"]["begin_s"]
    assert answer["ttft_s"] >= steps["first token"]["end_s"] - prefill["begin_s"] - 0.5
    assert "time line" in done.stderr
    # The same as from the same KV with one cluster.
    assert answer["token_ids"] == hosts.ask(document, decode["hosts"][0])["token_ids"]


def test_a_host_that_freezes_while_it_prefills_costs_no_answer(hosts: Hosts) -> None:
    argv = hosts.argv(DOCUMENTS[4], "--disaggregate", "always")
    asking = hosts.swarm.requester.start(argv)
    name = asking.wait_for(r" prefill (alice|bob)\b", ASK_TIMEOUT_S)[1]
    host = {"alice": hosts.alice, "bob": hosts.bob}[name].machine
    host.freeze()
    try:
        answer = json.loads(asking.wait(ASK_TIMEOUT_S).check().stdout)
    finally:
        host.thaw()
    assert len(answer["token_ids"]) == 12
    assert answer["cached_prompt_tokens"] == 0
    assert [hop["name"] for hop in answer["route"]] != [name]
    # Whichever is first: the host's silence is noticed, or nobody waits for the prefill any longer.
    [prefill] = [step["detail"] for step in answer["timeline"] if step["what"] == "prefill"]
    assert prefill == "given up" or prefill.startswith("failed: "), answer["timeline"]


def test_a_holder_that_dies_while_it_sends_costs_no_answer(hosts: Hosts) -> None:
    """Sending takes it more than half a second; it has no power any more when it has sent a part."""
    document = DOCUMENTS[2]
    first = hosts.ask(document, "alice")
    assert first["cached_prompt_tokens"] == 0
    alice = hosts.alice.machine
    hosts.swarm.lan.limit(alice, 100)
    with ThreadPoolExecutor(1) as threads:
        sent_before = alice.sent_bytes()
        asked = threads.submit(hosts.ask, document, "bob")
        deadline = time.monotonic() + ASK_TIMEOUT_S
        while alice.sent_bytes() < sent_before + DIES_AFTER_BYTES:
            assert time.monotonic() < deadline, "bob asks alice for nothing"
            assert not asked.done(), f"it came before alice could die: {asked.result()}"
            time.sleep(0.02)
        hosts.swarm.lan.power_off(alice)
        answer = asked.result()
    assert answer["cached_prompt_tokens"] < first["prompt_tokens"] // CHUNK_TOKENS * CHUNK_TOKENS
    assert len(answer["token_ids"]) == 12
    assert "Traceback" not in hosts.bob.process.stderr
