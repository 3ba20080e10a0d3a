"""Whom a host lends to."""

from __future__ import annotations

import pytest

from edgellm.errors import UsageError
from edgellm.leasing.policy import ANYONE, MEMBERS, Policy, chosen_policy
from edgellm.types.member import HOST, REQUESTER, Member


def member(*roles: str) -> Member:
    return Member("bob", "bob", frozenset(roles), "00", 1e10)


def test_members_only_is_members_who_may_ask() -> None:
    assert MEMBERS.objection("key", member(REQUESTER)) is None
    assert "lending only" in (MEMBERS.objection("key", member(HOST)) or "")
    assert "no private swarm" in (MEMBERS.objection("key", None) or "")


def test_chosen_peers_are_known_by_the_member_who_speaks() -> None:
    chosen = Policy(peers=frozenset({"bob"}))
    assert chosen.objection("key", member(REQUESTER)) is None
    assert chosen.objection("bob", None) is None
    assert "chosen peers" in (chosen.objection("key", None) or "")
    other = Member("carol", "carol", frozenset({REQUESTER}), "00", 1e10)
    assert "chosen peers" in (chosen.objection("key", other) or "")


def test_anyone_is_anyone() -> None:
    assert ANYONE.objection("key", None) is None
    assert ANYONE.objection("key", member(HOST)) is None


def test_nobody_said_anything() -> None:
    assert chosen_policy((), members=False, anyone=False, is_private=True) == MEMBERS
    with pytest.raises(UsageError) as caught:
        chosen_policy((), members=False, anyone=False, is_private=False)
    assert "--allow-anyone" in caught.value.remedy


def test_what_was_said_holds() -> None:
    assert chosen_policy((), members=False, anyone=True, is_private=False) == ANYONE
    assert chosen_policy(("bob",), members=False, anyone=False, is_private=True) == Policy(
        peers=frozenset({"bob"})
    )
    both = chosen_policy(("bob",), members=True, anyone=False, is_private=True)
    assert both == Policy(members=True, peers=frozenset({"bob"}))
    for peers, members, private in ((("bob",), False, True), ((), True, True), ((), True, False)):
        with pytest.raises(UsageError):
            chosen_policy(peers, members=members, anyone=True, is_private=private)
    with pytest.raises(UsageError):
        chosen_policy((), members=True, anyone=False, is_private=False)


def test_the_owner_is_told() -> None:
    assert ANYONE.told("") == "anyone who reaches it"
    assert MEMBERS.told("lab") == "the members of lab who may ask"
    assert (
        Policy(members=True, peers=frozenset({"bob"})).told("lab")
        == "the members of lab who may ask and 1 chosen peer"
    )
