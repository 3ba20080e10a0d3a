"""Invites: what their text carries, and what the maker's book makes of them."""

from __future__ import annotations

import string
from dataclasses import replace

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import MembershipError
from edgellm.p2p.identity import Identity
from edgellm.swarms.invite import PREFIX, Invite, open_token, read, token_of, written
from edgellm.swarms.ledger import Ledger
from edgellm.swarms.rate import ALL_PER_MINUTE, EACH_PER_MINUTE, MAX_SOURCES, Attempts
from edgellm.types.member import REQUESTER
from tests.unit.swarms_in_memory import BOTH, NOW

ROOT, BOB, CAROL = (Identity.generate() for _ in range(3))
INVITE = Invite(
    swarm=ROOT.peer,
    name="lab",
    id="a1" * 8,
    roles=BOTH,
    uses=1,
    expires_at=NOW + 3600,
    issuer=BOB.peer,
    addresses=("/ip4/192.168.1.7/tcp/4001", "/ip6/2001:db8::7/tcp/4001", "/dns4/lab.example/tcp/4001"),
)
LEDGER = Ledger(ROOT.peer).with_invite(INVITE, NOW)


def redeemed(ledger: Ledger, invite: Invite, peer: str = CAROL.peer, now: float = NOW) -> Ledger:
    return ledger.redeem(invite, peer, "carol", "5e" * 16, now)[0]


def fault(ledger: Ledger, invite: Invite, peer: str = CAROL.peer, now: float = NOW) -> str:
    with pytest.raises(MembershipError) as caught:
        redeemed(ledger, invite, peer, now)
    return caught.value.fault


def test_a_token_is_short_text_that_says_it_all() -> None:
    text = written(token_of(ROOT, INVITE))
    assert len(text) < 330
    assert text.isalnum()
    assert open_token(read(text)) == INVITE
    # As mail programs break it.
    assert open_token(read(f"  {text[:70]}\n{text[70:]} \n")) == INVITE


def test_a_changed_token_is_refused() -> None:
    token = token_of(ROOT, INVITE)
    for index in range(len(token)):
        with pytest.raises(MembershipError):
            open_token(token[:index] + bytes([token[index] ^ 4]) + token[index + 1 :])


def test_a_token_that_another_signed_is_refused() -> None:
    with pytest.raises(MembershipError) as caught:
        open_token(token_of(CAROL, INVITE))
    assert caught.value.fault == "forged"


@pytest.mark.parametrize("text", ["", "hello", PREFIX, PREFIX + "0OIl", PREFIX + "1" * 5000, "edgellm2abc"])
def test_what_is_no_invite(text: str) -> None:
    with pytest.raises(MembershipError) as caught:
        open_token(read(text))
    assert PREFIX in caught.value.remedy


@given(data=st.binary(max_size=300))
def test_whatever_bytes_come_it_is_a_refusal(data: bytes) -> None:
    with pytest.raises(MembershipError):
        open_token(data)
    with pytest.raises(MembershipError):
        open_token(read(PREFIX + base58.b58encode(data).decode()))


@given(text=st.text(string.printable, max_size=100))
def test_whatever_text_comes_it_is_a_refusal(text: str) -> None:
    with pytest.raises(MembershipError):
        open_token(read(text))


def test_it_is_used_as_often_as_it_says() -> None:
    twice = replace(INVITE, id="b2" * 8, uses=2)
    ledger = LEDGER.with_invite(twice, NOW)
    ledger = redeemed(redeemed(ledger, twice), twice, BOB.peer)
    assert fault(ledger, twice, ROOT.peer) == "used up"
    assert [member.peer for member in ledger.members] == [CAROL.peer, BOB.peer]
    # A signature that allows more than the book does not help.
    assert fault(ledger, replace(twice, uses=100), ROOT.peer) == "used up"


def test_the_same_peer_gets_the_same_again() -> None:
    ledger = redeemed(LEDGER, INVITE)
    again, certificate = ledger.redeem(INVITE, CAROL.peer, "somebody else", "77" * 16, NOW + 5)
    assert (certificate.name, certificate.serial) == ("carol", "5e" * 16)
    assert len(again.members) == 1
    assert again.invite(INVITE.id) == ledger.invite(INVITE.id)


def test_a_certificate_has_the_invites_role() -> None:
    asks = replace(INVITE, id="c3" * 8, roles=frozenset((REQUESTER,)))
    _, certificate = LEDGER.with_invite(asks, NOW).redeem(asks, CAROL.peer, "carol", "5e" * 16, NOW)
    assert certificate.roles == {REQUESTER}
    # The book knows what it was made for, whatever is signed.
    wider = replace(asks, roles=BOTH)
    _, certificate = LEDGER.with_invite(asks, NOW).redeem(wider, CAROL.peer, "carol", "5e" * 16, NOW)
    assert certificate.roles == {REQUESTER}


def test_invites_that_are_none_any_more() -> None:
    assert fault(LEDGER, INVITE, now=NOW + 3600) == "expired"
    assert fault(LEDGER, replace(INVITE, expires_at=NOW + 1e6), now=NOW + 3600) == "expired"
    assert fault(LEDGER.revoke_invite(INVITE.id), INVITE) == "revoked"
    assert fault(LEDGER, replace(INVITE, id="ff" * 8)) == "unknown"
    assert fault(LEDGER, replace(INVITE, swarm=BOB.peer)) == "wrong swarm"


def test_who_was_revoked_does_not_come_back_by_an_invite_or_a_renewal() -> None:
    ledger = redeemed(LEDGER, INVITE).revoke_member(CAROL.peer, NOW)
    fresh = replace(INVITE, id="d4" * 8)
    assert fault(ledger.with_invite(fresh, NOW), fresh) == "revoked"
    assert fault(ledger, INVITE) == "revoked"
    with pytest.raises(MembershipError):
        ledger.renew(CAROL.peer, NOW)


def test_renewal_is_for_members() -> None:
    ledger, certificate = redeemed(LEDGER, INVITE).renew(CAROL.peer, NOW + 1e6)
    assert certificate.issued_at == NOW + 1e6
    assert ledger.members[0].expires_at == certificate.expires_at
    with pytest.raises(MembershipError):
        ledger.renew(BOB.peer, NOW)


def test_strangers_may_not_try_for_ever() -> None:
    attempts = Attempts()
    let_through = sum(attempts.allows("10.0.0.1", now=0.0) for _ in range(100))
    assert let_through == EACH_PER_MINUTE
    assert attempts.allows("10.0.0.2", now=0.0)
    assert attempts.allows("10.0.0.1", now=60 / EACH_PER_MINUTE)
    # Those behind a relay have no address, and share a bucket that is nobody else's.
    relayed = Attempts()
    assert sum(relayed.allows("", now=0.0) for _ in range(100)) == EACH_PER_MINUTE
    assert relayed.allows("10.0.0.1", now=0.0)
    many = Attempts()
    let_through = sum(many.allows(f"10.1.{n // 256}.{n % 256}", now=0.0) for n in range(3 * MAX_SOURCES))
    assert let_through == ALL_PER_MINUTE
    assert len(many._buckets) <= MAX_SOURCES + 1
