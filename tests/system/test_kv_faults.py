"""KV blocks on hosts that cannot keep them: no room by choice, no room on the disk, an IPFS daemon that goes away.

An answer comes all the same, it is the right one, and the host says why it kept nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from edgellm_vllm.kv.settings import CHUNK_TOKENS

from tests.integration.jsipfs import JsIpfs, jsipfs_daemon
from tests.system.lan import Lan
from tests.system.leftovers import Snapshot
from tests.system.machine import REPOSITORY
from tests.system.swarm import ASK_TIMEOUT_S, Host, Swarm
from tests.system.test_kv_share import DOCUMENTS, MODEL

TOLD = {"EDGELLM_LOG": "info"}
SLOWER_S = 10.0
"""How much longer than usual an answer may take whose blocks cannot be had: the gate's patience and two loaded cores."""


@dataclass
class Hosts:
    swarm: Swarm
    daemon: JsIpfs
    keeper: Host
    """Has an IPFS daemon keep its blocks."""
    frugal: Host
    """Keeps none."""
    full: Host
    """Has a disk of 1 MiB for them."""
    first_answer: dict[str, Any] | None = None
    """Of the first document, its prompt computed."""

    def ask(self, document: str, host: Host) -> dict[str, Any]:
        words = ("--raw", "--kv-share", "--json", "--max-tokens", "12", "--peers", host.name, "--pp", "1")
        argv = self.swarm.ask(document, *words, "--context", "1536", model=MODEL)
        answer: dict[str, Any] = json.loads(
            self.swarm.requester.run(argv, timeout_s=ASK_TIMEOUT_S).check().stdout
        )
        return answer


@pytest.fixture(scope="module")
def hosts(module_lan: Lan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    model = tmp_path_factory.mktemp("models") / MODEL
    program = [sys.executable, "-m", "benchmarks.large_model", str(model), "--grouped"]
    subprocess.run(program, check=True, cwd=REPOSITORY)
    swarm = Swarm(module_lan)
    keeper, frugal, full = (swarm.machine(name) for name in ("keeper", "frugal", "full"))
    for machine in (keeper, frugal, full):
        machine.environment |= TOLD
    blocks = full.home / ".cache/edgellm/kv/blocks"
    full.run(["mkdir", "-p", str(blocks)]).check()
    full.namespaces.command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(blocks))
    module_lan.before |= Snapshot.take([full])
    with ExitStack() as stack:
        with keeper.namespaces.network():
            daemon = stack.enter_context(jsipfs_daemon(keeper.home / "repository"))
        options = ((keeper, ("--ipfs", daemon.address)), (frugal, ("--kv-quota", "0")), (full, ()))
        started = [
            swarm.start_host(machine, *words, model=model, memory="3GiB") for machine, words in options
        ]
        yield Hosts(swarm, daemon, *(host.wait_ready() for host in started))


def whole(answer: dict[str, Any]) -> int:
    """Prompt tokens that fill chunks."""
    return int(answer["prompt_tokens"]) // CHUNK_TOKENS * CHUNK_TOKENS


def test_an_ipfs_daemon_keeps_them_and_goes_away(hosts: Hosts) -> None:
    document = DOCUMENTS[0]
    computed = hosts.ask(document, hosts.keeper)
    assert computed["cached_prompt_tokens"] == 0
    hosts.first_answer = computed
    kept = hosts.ask(document, hosts.keeper)
    assert kept["cached_prompt_tokens"] == whole(kept)
    # The same KV by the daemon's API and over the network; and the host that fetched it kept nothing.
    fetched = hosts.ask(document, hosts.frugal)
    assert [source["name"] for source in fetched["kv_from"]] == ["keeper"]
    assert fetched["cached_prompt_tokens"] == whole(fetched)
    assert fetched["token_ids"] == kept["token_ids"]
    assert not list((hosts.frugal.machine.home / ".cache/edgellm/kv").glob("blocks/??/*"))

    said_before = len(hosts.keeper.process.stderr)
    hosts.daemon.process.terminate()
    hosts.daemon.process.wait(20)
    without = hosts.ask(document, hosts.keeper)
    assert without["cached_prompt_tokens"] == 0
    assert without["token_ids"] == computed["token_ids"]
    assert without["ttft_s"] < computed["ttft_s"] + SLOWER_S
    assert "IPFS daemon" in hosts.keeper.process.stderr[said_before:]


def test_a_full_disk_costs_no_answer(hosts: Hosts) -> None:
    # Nobody has the blocks of this document any more, or it was not asked about yet.
    usual = hosts.first_answer or hosts.ask(DOCUMENTS[0], hosts.frugal)
    answer = hosts.ask(DOCUMENTS[0], hosts.full)
    assert answer["cached_prompt_tokens"] == 0
    assert answer["token_ids"] == usual["token_ids"]
    assert answer["ttft_s"] < usual["ttft_s"] + SLOWER_S
    assert "is full" in hosts.full.process.stderr
