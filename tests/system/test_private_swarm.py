"""A private swarm from its making to a revocation: invites, a real answer between members, a stranger who sees nothing."""

from __future__ import annotations

import json
import time

from tests.system.lan import Lan
from tests.system.machine import Machine
from tests.system.solo import Solo
from tests.system.swarm import ASK_TIMEOUT_S, START_TIMEOUT_S, TINY, error_of, use

PROMPT = "The with statement is used"
TOKENS = 64


def invited(maker: Machine, guest: Machine, role: str) -> str:
    """Joins `guest` by an invite of `maker`; the guest's member id."""
    token = maker.run(["edgellm", "swarm", "invite", "--role", role, "--expires", "10m"]).check().stdout
    guest.run(["edgellm", "swarm", "join", "-", "--as", guest.name], input=token).check()
    (swarm,) = json.loads(guest.run(["edgellm", "swarm", "list", "--json"]).check().stdout)
    assert (swarm["name"], swarm["state"], swarm["roles"]) == ("lab", "member", [role])
    return str(swarm["member"])


def test_members_answer_each_other_and_nobody_else_gets_in(lan: Lan, solo: Solo) -> None:
    maker, alice, carol, mallory = (use(lan, name) for name in ("meet", "alice", "carol", "mallory"))
    maker.run(["edgellm", "swarm", "create", "lab"]).check()
    meeting_point = maker.start(["edgellm", "bootstrap"])
    address = meeting_point.wait_for(r"--bootstrap (/ip4/10\.77\.\S+)", START_TIMEOUT_S)[1]
    invited(maker, alice, "host")
    carols = invited(maker, carol, "requester")
    lending = ["--memory", "2GiB", "--threads", "1", "--grace", "0"]
    host = alice.start(["edgellm", "host", "--model", str(TINY), *lending])
    host.wait_for(r"lends to the members of lab who may ask", START_TIMEOUT_S)

    # A stranger, who knows both addresses.
    alices = host.wait_for(r"--bootstrap (/ip4/10\.77\.\S+)", START_TIMEOUT_S)[1]
    for known in (address, alices):
        begun = time.monotonic()
        for words in (["peers"], ["models"], ["ask", "hello", "--model", "tiny"]):
            error, _ = error_of(mallory.run(["edgellm", *words, "--bootstrap", known]))
            assert error.startswith("no bootstrap peer answers")
        assert time.monotonic() - begun < 30

    # Each may do what its invite was for.
    error, remedy = error_of(carol.run(["edgellm", "host", "--model", str(TINY), *lending]))
    assert "was not for a host" in error
    assert "--role host" in remedy
    error, _ = error_of(alice.run(["edgellm", "peers"]))
    assert "for lending only" in error

    opening = ["session", "open", "-q", "--model", "tiny", "--pp", "1", "--name", "amber", "--kv-share"]
    opening += ["--kv-scope", "swarm", "--context", "2048"]
    carol.run(["edgellm", *opening], timeout_s=ASK_TIMEOUT_S).check()
    question = ["edgellm", "ask", PROMPT, "--session", "amber", "--raw", "--temperature", "0", "--json"]
    answer = json.loads(carol.run([*question, "--max-tokens", str(TOKENS)]).check().stdout)
    (expected,) = solo.answers(TINY, [PROMPT], TOKENS)
    assert tuple(answer["token_ids"]) == expected.token_ids
    assert free_leases(maker) == {"alice": 0}

    maker.run(["edgellm", "swarm", "revoke", carols]).check()
    begun = time.monotonic()
    while free_leases(maker) != {"alice": 1}:
        assert time.monotonic() - begun < 15, "the lease of one who was revoked goes on"
    error, remedy = error_of(carol.run(["edgellm", "peers"]))
    assert "was revoked" in error
    assert "new invite" in remedy
    carol.run(["edgellm", "session", "close", "amber"])
    assert host.returncode is None
    assert meeting_point.returncode is None


def free_leases(member: Machine) -> dict[str, int]:
    said = member.run(["edgellm", "peers", "--json"]).check().stdout
    return {peer["name"]: peer["free_leases"] for peer in json.loads(said)}
