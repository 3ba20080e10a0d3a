"""Borrowed machines answer: a meeting point, hosts and a requester, each on a machine of its own."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.system.lan import Lan
from tests.system.process import Completed
from tests.system.solo import Solo
from tests.system.swarm import ASK_TIMEOUT_S, TINY, Swarm

PROMPT = "The with statement is used"
PROMPTS = (PROMPT, "A generator is", "Functions that return")
TOKENS = 160


@pytest.fixture(scope="module")
def swarm(module_lan: Lan) -> Iterator[Swarm]:
    swarm = Swarm(module_lan)
    swarm.hosts("alice", "bob", "dave")
    return swarm


@pytest.fixture(scope="module")
def reference(solo: Solo) -> dict[str, tuple[tuple[int, ...], str]]:
    """Token ids and text for each of the prompts, from the engine alone in one process."""
    answers = solo.answers(TINY, PROMPTS, TOKENS)
    return {prompt: (answer.token_ids, answer.text) for prompt, answer in zip(PROMPTS, answers, strict=True)}


def ask(swarm: Swarm, *options: str, prompt: str = PROMPT, input: str = "") -> Completed:
    argv = swarm.ask(prompt, "--raw", "--max-tokens", str(TOKENS), *options)
    return swarm.requester.run(argv, timeout_s=ASK_TIMEOUT_S, input=input).check()


def test_two_hosts_answer_like_one_process(swarm: Swarm, reference: dict[str, tuple[tuple[int, ...], str]]) -> None:
    done = ask(swarm, "--pp", "2")
    assert done.stdout == reference[PROMPT][1] + "\n"
