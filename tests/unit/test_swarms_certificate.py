"""Whom a chain of certificates lets in, and whom not: forged, stolen, expired, of another swarm, of the wrong role."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import MembershipError
from edgellm.p2p.envelope import seal
from edgellm.p2p.identity import Identity
from edgellm.swarms.certificate import (
    CERTIFICATE_S,
    CLOCK_SKEW_S,
    DELEGATION_S,
    member_of,
    open_certificate,
    seal_delegation,
)
from edgellm.swarms.revocation import (
    MAX_REVOKED,
    Revocations,
    open_revocations,
    seal_revocations,
)
from edgellm.types.member import HOST, REQUESTER
from tests.unit.swarms_in_memory import BOTH, NOW, certify

ROOT, BOB, EVE, BRIEF = (Identity.generate() for _ in range(4))
SWARM = ROOT.peer


def fault(*chain: bytes, peer: str = BOB.peer, now: float = NOW, revoked: tuple[str, ...] = ()) -> str:
    with pytest.raises(MembershipError) as caught:
        member_of(chain, swarm=SWARM, peer=peer, now=now, revoked=revoked)
    return caught.value.fault


def test_a_member_is_let_in_with_what_its_certificate_says() -> None:
    member = member_of((certify(ROOT, BOB.peer, roles=[HOST]),), swarm=SWARM, peer=BOB.peer, now=NOW)
    assert (member.peer, member.name, member.roles) == (BOB.peer, "bob", {HOST})
    assert member.expires_at == NOW + CERTIFICATE_S


def test_one_that_is_not_the_swarms_is_refused() -> None:
    assert fault(certify(EVE, BOB.peer)) == "wrong swarm"
    assert fault(certify(EVE, BOB.peer, swarm=SWARM)) == "forged"
    # A member signs no members.
    assert fault(certify(BOB, EVE.peer, swarm=SWARM), peer=EVE.peer) == "forged"


def test_a_changed_one_is_refused() -> None:
    good = certify(ROOT, BOB.peer)
    for index in range(len(good)):
        changed = good[:index] + bytes([good[index] ^ 1]) + good[index + 1 :]
        with pytest.raises(MembershipError):
            member_of((changed,), swarm=SWARM, peer=BOB.peer, now=NOW)


def test_a_stolen_one_is_of_no_use_to_another_key() -> None:
    assert fault(certify(ROOT, BOB.peer), peer=EVE.peer) == "stolen"


def test_time_is_kept() -> None:
    good = certify(ROOT, BOB.peer)
    assert fault(good, now=NOW + CERTIFICATE_S) == "expired"
    assert fault(good, now=NOW - CLOCK_SKEW_S - 2) == "from the future"
    assert member_of((good,), swarm=SWARM, peer=BOB.peer, now=NOW - CLOCK_SKEW_S + 2)
    assert fault(certify(ROOT, BOB.peer, lasts_s=CERTIFICATE_S * 2)) == "malformed"


def test_the_revoked_are_refused_whoever_speaks_for_them() -> None:
    good = certify(ROOT, BOB.peer)
    assert fault(good, revoked=(BOB.peer,)) == "revoked"
    delegation = seal_delegation(BOB, SWARM, BRIEF.peer, NOW)
    assert fault(delegation, good, peer=BRIEF.peer, revoked=(BOB.peer,)) == "revoked"


def test_a_member_lends_its_name_to_a_key_of_some_minutes() -> None:
    chain = (seal_delegation(BOB, SWARM, BRIEF.peer, NOW), certify(ROOT, BOB.peer, roles=BOTH))
    member = member_of(chain, swarm=SWARM, peer=BRIEF.peer, now=NOW + 1)
    assert (member.peer, member.roles) == (BOB.peer, {REQUESTER})
    assert fault(*chain, peer=BRIEF.peer, now=NOW + DELEGATION_S) == "expired"
    assert fault(*chain, peer=EVE.peer) == "stolen"
    assert fault(*chain, peer=BOB.peer) == "stolen"


def test_delegations_that_nobody_may_give() -> None:
    bobs = certify(ROOT, BOB.peer)
    eves = seal_delegation(EVE, SWARM, EVE.peer, NOW)
    assert fault(eves, bobs, peer=EVE.peer) == "forged"
    elsewhere = seal_delegation(BOB, EVE.peer, BRIEF.peer, NOW)
    assert fault(elsewhere, bobs, peer=BRIEF.peer) == "wrong swarm"
    lends_only = certify(ROOT, BOB.peer, roles=[HOST])
    delegation = seal_delegation(BOB, SWARM, BRIEF.peer, NOW)
    assert fault(delegation, lends_only, peer=BRIEF.peer) == "wrong role"
    # One delegation does not give another, and a certificate is no delegation.
    second = seal_delegation(BRIEF, SWARM, EVE.peer, NOW)
    assert fault(second, delegation, bobs, peer=EVE.peer) == "malformed"
    assert fault(second, delegation, peer=EVE.peer) == "forged"
    assert fault(bobs, bobs) == "forged"
    assert fault(peer=BOB.peer) == "malformed"


def test_signatures_of_one_purpose_do_not_pass_for_another() -> None:
    for domain, kind in (
        ("edgellm-advert-v1", b"/edgellm/advert"),
        ("edgellm-delegation-v1", b"/edgellm/delegation"),
        ("edgellm-membership-v1", b"/edgellm/advert"),
    ):
        assert fault(seal(ROOT, domain, kind, b"\x0a\x00")) == "forged"


@given(data=st.binary(max_size=400))
def test_whatever_bytes_come_it_is_a_refusal(data: bytes) -> None:
    for signed in (data, seal(ROOT, "edgellm-membership-v1", b"/edgellm/membership", data)):
        with pytest.raises(MembershipError):
            open_certificate(signed, SWARM)
    for signed in (data, seal(BOB, "edgellm-delegation-v1", b"/edgellm/delegation", data)):
        with pytest.raises(MembershipError):
            member_of((signed, certify(ROOT, BOB.peer)), swarm=SWARM, peer=EVE.peer, now=NOW)
    with pytest.raises(MembershipError):
        open_revocations(data, SWARM)


def test_lists_of_the_revoked() -> None:
    first = Revocations().with_peer(BOB.peer, NOW)
    second = first.with_peer(EVE.peer, NOW + 60)
    assert (second.sequence, second.peers) == (2, {BOB.peer, EVE.peer})
    assert open_revocations(seal_revocations(ROOT, second), SWARM) == second
    # No certificate of bob's is left by then.
    later = second.with_peer(BRIEF.peer, NOW + CERTIFICATE_S + 86400 + 30)
    assert later.peers == {EVE.peer, BRIEF.peer}
    with pytest.raises(MembershipError):
        open_revocations(seal_revocations(EVE, second), SWARM)
    full = Revocations(1, tuple((str(number), NOW) for number in range(MAX_REVOKED)))
    with pytest.raises(MembershipError):
        full.with_peer(BOB.peer, NOW)
