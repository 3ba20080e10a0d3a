"""A host's quota with a real engine: what was computed is counted, and who has lent it all says when it lends again."""

from __future__ import annotations

import json
import re
import time

from tests.system.lan import Lan
from tests.system.swarm import ASK_TIMEOUT_S, Swarm, error_of

PROMPT = "The with statement is used"
TOKENS = 60


def test_a_quota_counts_what_was_computed_and_closes_the_host_until_tomorrow(lan: Lan) -> None:
    swarm = Swarm(lan)
    alice = swarm.machine("alice")
    quota = ("--quota", "100tok/day,1h/day,1GB/day")
    host = swarm.start_host(alice, *quota).wait_ready()
    said = host.process.wait_for(r"quota    (.*)")
    assert said[1] == "100 tok/day: 100 tok left"
    argv = swarm.ask(PROMPT, "--raw", "--json", "--fresh", "--max-tokens", str(TOKENS))

    answer = json.loads(swarm.requester.run(argv, timeout_s=ASK_TIMEOUT_S).check().stdout)
    assert len(answer["token_ids"]) == TOKENS
    [ledger] = alice.home.rglob("quota.json")
    # The host hears the last count after the answer has come.
    deadline = time.monotonic() + 5
    while not swarm.peers()["alice"]["free_leases"]:
        assert time.monotonic() < deadline
    taken = {row["kind"]: row["amount"] for row in json.loads(ledger.read_bytes())["taken"]}
    # Every token of prompt and answer passes its layers once, the last one only as a result.
    prompt = len(answer.get("prompt_token_ids", ())) or 5
    assert TOKENS - 5 <= taken["tokens"] <= TOKENS + 3 * prompt
    assert 1 < taken["time"] < ASK_TIMEOUT_S
    assert 1000 < taken["bytes"] < 1e9

    # The second answer begins within the quota and uses it up: its host lets it end, or move, with notice.
    done = swarm.requester.run(argv, timeout_s=ASK_TIMEOUT_S).check()
    assert json.loads(done.stdout)["token_ids"] == answer["token_ids"]
    host.process.wait_for(
        r"nothing is lent now: its quota of 100 tok/day is used up; it opens again at \d{4}-"
    )
    error, _ = error_of(swarm.requester.run(argv, timeout_s=ASK_TIMEOUT_S))
    assert re.search(r"free|busy|lent|used up", error), error

    # A restart forgets nothing.
    host.process.stop()
    again = swarm.start_host(alice, *quota).wait_ready()
    again.process.wait_for(r"quota    100 tok/day: 0 tok left")
    again.process.wait_for(r"quota    lends nothing now: its quota of 100 tok/day is used up")
