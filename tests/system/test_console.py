"""The console in a real browser: the swarm, a session from its bring-up to its end, a chat, hosts that come and go."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.lan import Lan
from tests.system.leftovers import Snapshot
from tests.system.machine import REPOSITORY
from tests.system.swarm import TINY, Swarm

BROWSER = Path(__file__).parent / "console_browser.py"
WALK_TIMEOUT_S = 200.0
STEP_TIMEOUT_S = 150.0


def artefacts() -> Path:
    """Where the screenshots go."""
    directory = Path(os.environ.get("EDGELLM_ARTEFACTS") or REPOSITORY / "tests" / "out")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@pytest.fixture(scope="module")
def saw(module_lan: Lan) -> dict[str, Any]:
    """What the browser saw on its way."""
    swarm = Swarm(module_lan)
    _, bob = swarm.start_hosts("alice", "bob")
    dave = swarm.machine("dave")
    user = swarm.requester
    console = user.start(swarm.command("console", "--no-open", "--port", "8643"))
    url = console.wait_for(r"http://127\.0\.0\.1:8643/")[0]
    shots = user.home / "shots"
    shots.mkdir()
    try:
        # Chromium's desktop settings would be kept in files otherwise.
        browser = user.start(
            [sys.executable, str(BROWSER), url, str(shots), str(TINY)], env={"GSETTINGS_BACKEND": "memory"}
        )
        browser.wait_for(r"^now: start dave$", STEP_TIMEOUT_S)
        lending = swarm.start_host(dave)
        browser.wait_for(r"^now: kill dave$", STEP_TIMEOUT_S)
        lending.process.kill()
        browser.wait_for(r"^now: kill bob$", STEP_TIMEOUT_S)
        bob.process.kill()
        done = browser.wait(WALK_TIMEOUT_S).check()
    finally:
        for shot in shots.iterdir():
            shutil.copy(shot, artefacts())
    console.stop().check()
    # Whoever is killed cannot remove its sockets; the next start does.
    module_lan.before |= Snapshot.take([bob.machine, dave])
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def test_the_swarm_is_seen(saw: dict[str, Any]) -> None:
    assert sorted(saw["hosts"]) == ["alice", "bob"]
    assert saw["models"] == ["tiny"]


def test_a_bring_up_is_followed(saw: dict[str, Any]) -> None:
    assert sorted(saw["lanes"]) == ["alice", "bob", "head"]
    assert len(saw["phases"]) > 3, saw["phases"]


def test_the_pipeline_is_drawn(saw: dict[str, Any]) -> None:
    assert sorted(text.split()[0] for text in saw["stages"]) == ["alice", "bob"]
    assert saw["stages"][0].split("layers ")[1].startswith("0–")
    assert all("from here" in text for text in saw["stages"])
    assert "ms" in saw["link"]
    assert saw["endpoint"].startswith("http://127.0.0.1:")


def test_an_answer_streams_and_its_time_is_accounted_for(saw: dict[str, Any]) -> None:
    assert saw["answer"]
    assert len(saw["lengths"]) > 4, "it came in few pieces"
    assert "24 tokens" in saw["speed"]
    assert saw["answer"] in saw["said"]
    assert "reading the prompt" in saw["sentence"]
    assert "network and scheduling" in saw["sentence"]
    assert saw["ticks"] > 4
    hops = " ".join(saw["hops"])
    for hop in (
        "alice, prefill",
        "alice, decode",
        "bob, prefill",
        "bob, decode",
        "network and scheduling, decode",
    ):
        assert hop in hops
    assert len(saw["tables"]) == 2


def test_what_was_said_is_there_after_a_reload(saw: dict[str, Any]) -> None:
    assert saw["after_reload"] == saw["answer"]


def test_a_session_has_these_pages_itself_and_starts_nothing_in_them(saw: dict[str, Any]) -> None:
    assert saw["own_forms"] == 0


def test_a_host_of_this_machine_lends_what_it_was_told_to(saw: dict[str, Any]) -> None:
    assert saw["lent"].startswith("1.00 GiB")


def test_a_session_that_lost_a_host_says_so(saw: dict[str, Any]) -> None:
    assert "bob" in saw["loss"]


def test_nothing_is_wrong_in_the_browser(saw: dict[str, Any]) -> None:
    assert saw["first_stop"] == "Skip to content"
    assert saw["errors"] == []
    assert saw["elsewhere"] == []
    assert saw["wide"] == []
