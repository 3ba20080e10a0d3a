"""Sessions in the foreground: their line, their end by Ctrl-C, and by what their hosts have lent."""

from __future__ import annotations

import json
import signal
import sys
import time

from tests.system.lan import Lan
from tests.system.process import Process
from tests.system.swarm import ASK_TIMEOUT_S, Swarm

PORT = 8766
MAX_COST_S = 60

_STREAM = """
import json, sys, urllib.request
body = {"model": "tiny", "prompt": "def", "max_tokens": int(sys.argv[2]), "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True}}
asked = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/v1/completions", json.dumps(body).encode(),
                               {"Content-Type": "application/json"})
with urllib.request.urlopen(asked, timeout=60) as answer:
    lines = [line for line in answer if line.startswith(b"data: ")]
    usage = json.loads(lines[-2].removeprefix(b"data: "))["usage"]
    print(usage["completion_tokens"], lines[-1].decode().strip())
"""
_ASK = """
import openai, sys
client = openai.OpenAI(base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key="none", max_retries=0)
try:
    client.models.list()
except openai.APIStatusError as error:
    print(error.status_code, error.body["message"])
"""


def opened(swarm: Swarm, *options: str) -> Process:
    argv = swarm.command(
        "session open", "--model", "tiny", "--pp", "1", "--context", "2048", "--foreground", *options
    )
    process = swarm.requester.start(argv)
    process.wait_for(r"^amber$", ASK_TIMEOUT_S, stream="stdout")
    return process


def test_a_session_stays_until_ctrl_c_or_until_its_hosts_have_lent_enough(lan: Lan) -> None:
    swarm = Swarm(lan)
    swarm.start_hosts("alice")
    carol = swarm.requester
    options = ("--name", "amber", "--port", str(PORT))

    by_hand = opened(swarm, *options)
    by_hand.wait_for(rf"amber · tiny · ready · 0 running · closes in 15m · http://127.0.0.1:{PORT}/v1", 10)
    assert carol.run([sys.executable, "-c", _STREAM, str(PORT), "600"]).check().stdout.startswith("600 ")
    by_hand.wait_for(r"· 1 running · \d+ tok/s · http", 5)
    by_hand.interrupt()
    done = by_hand.wait(20).check()
    assert done.stdout == "amber\n"
    assert done.stderr.splitlines()[-2:] == ["closing amber …", "closed amber: you ended it"]

    # As a service manager ends it, and while it is brought up.
    starting = carol.start(swarm.command("session open", "--model", "tiny", "--foreground", *options))
    starting.wait_for("leased", ASK_TIMEOUT_S)
    starting.signal(signal.SIGTERM)
    assert starting.wait(20).returncode == 130
    assert carol.run(["edgellm", "session", "list", "--json"]).check().stdout == "[]\n"

    by_cost = opened(swarm, *options, "--idle", "0", "--max-cost", str(MAX_COST_S))
    assert "without a request" not in by_cost.stderr
    deadline = time.monotonic() + MAX_COST_S
    while (shown := json.loads(carol.run(["edgellm", "session", "show", "amber", "--json"]).check().stdout))[
        "cost_s"
    ] < MAX_COST_S - 3:
        assert shown["max_cost_s"] == MAX_COST_S
        assert time.monotonic() < deadline
        time.sleep(0.2)
    running = carol.start([sys.executable, "-c", _STREAM, str(PORT), "2000"])
    by_cost.wait_for(
        r"closing \(its hosts have lent 1m together, as much as --max-cost allows\) · 1 running", 20
    )
    refused = carol.run([sys.executable, "-c", _ASK, str(PORT)]).check().stdout
    assert (
        refused == "503 the session closes: its hosts have lent 1m together, as much as --max-cost allows\n"
    )
    asked = carol.run(["edgellm", "ask", "What?", "--session", "amber"])
    assert asked.stderr.startswith("error: session 'amber' closes: its hosts have lent 1m together")
    # What runs is finished.
    count, last = running.wait(60).check().stdout.split(maxsplit=1)
    assert int(count) > 1900
    assert last == "data: [DONE]\n"
    done = by_cost.wait(30).check()
    assert done.stderr.splitlines()[-1] == (
        "closed amber: its hosts have lent 1m together, as much as --max-cost allows"
    )
