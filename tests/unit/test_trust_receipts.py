"""Receipts: signed by both sides, and none passes for another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import ProtocolViolation
from edgellm.leasing.lease import Lease, Phase
from edgellm.p2p.envelope import seal
from edgellm.p2p.identity import Identity
from edgellm.trust.accounts import HostAccounts, lent
from edgellm.trust.receipt import (
    HOST_DOMAIN,
    MAX_RECEIPT_BYTES,
    PAYLOAD_TYPE,
    REQUESTER_DOMAIN,
    Receipt,
    countersign,
    objection,
    open_countersigned,
    open_signed,
    sign,
)
from tests.unit.samples import DIGEST, GIB

HOST, REQUESTER, MALLORY = Identity.generate(), Identity.generate(), Identity.generate()
NOW = 1_700_000_000.0
RECEIPT = Receipt(
    cluster="c" * 32,
    lease="f" * 16,
    host=HOST.peer,
    requester=REQUESTER.peer,
    digest=DIGEST,
    first_layer=0,
    end_layer=4,
    answers=2,
    tokens=70,
    seconds=12.5,
    ended_at=NOW,
)
LEASE = Lease(
    id="f" * 16,
    cluster="c" * 32,
    requester=REQUESTER.peer,
    devices=("0",),
    memory_bytes=GIB,
    first_layer=0,
    end_layer=4,
    digest=DIGEST,
    fabric="overlay",
    phase=Phase.RUNNING,
    granted_at=NOW - 13,
)


def test_both_signatures_travel_with_it() -> None:
    signed = sign(RECEIPT, REQUESTER)
    assert open_signed(signed) == RECEIPT
    assert open_countersigned(countersign(signed, HOST)) == RECEIPT
    assert len(signed) < MAX_RECEIPT_BYTES


@pytest.mark.parametrize(
    ("forged", "why"),
    [
        (lambda: countersign(sign(RECEIPT, MALLORY), HOST), "another requester"),
        (lambda: countersign(sign(RECEIPT, REQUESTER), MALLORY), "another host"),
        (lambda: sign(RECEIPT, REQUESTER), "instead of|not signed"),
        (lambda: seal(HOST, REQUESTER_DOMAIN, PAYLOAD_TYPE, sign(RECEIPT, REQUESTER)), "not signed"),
        (lambda: countersign(countersign(sign(RECEIPT, REQUESTER), HOST), HOST), "not signed"),
        (lambda: seal(HOST, HOST_DOMAIN, b"/edgellm/plan", sign(RECEIPT, REQUESTER)), "instead of"),
        (lambda: countersign(b"x" * 5000, HOST), "over the limit"),
        (lambda: countersign(sign(replace(RECEIPT, tokens=1 << 50), REQUESTER), HOST), "more than anybody"),
        (lambda: countersign(sign(replace(RECEIPT, seconds=float("nan")), REQUESTER), HOST), "impossible"),
        (lambda: countersign(sign(replace(RECEIPT, end_layer=0), REQUESTER), HOST), "layers"),
        (lambda: countersign(sign(replace(RECEIPT, cluster="C" * 32), REQUESTER), HOST), "cluster"),
        (lambda: countersign(sign(replace(RECEIPT, digest="ab"), REQUESTER), HOST), "model"),
    ],
)
def test_a_forged_one_is_none(forged: Callable[[], bytes], why: str) -> None:
    with pytest.raises(ProtocolViolation, match=why):
        open_countersigned(forged())


def test_a_changed_byte_anywhere_is_noticed() -> None:
    whole = countersign(sign(RECEIPT, REQUESTER), HOST)
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        with pytest.raises(ProtocolViolation):
            open_countersigned(bytes(changed))


@given(st.binary(max_size=400))
def test_any_bytes_are_refused(data: bytes) -> None:
    for opened in (open_signed, open_countersigned):
        with pytest.raises(ProtocolViolation):
            opened(data)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"host": MALLORY.peer}, "other peers"),
        ({"requester": MALLORY.peer}, "other peers"),
        ({"lease": "e" * 16}, "another lease"),
        ({"cluster": "d" * 32}, "another lease"),
        ({"end_layer": 8}, "other layers"),
        ({"digest": "cd" * 32}, "other layers"),
        ({"seconds": 60.0}, "longer time"),
        ({"ended_at": NOW - 7200}, "not of now"),
    ],
)
def test_a_host_signs_what_its_own_lease_was_only(change: dict[str, object], why: str) -> None:
    assert objection(RECEIPT, host=HOST.peer, lease=LEASE, now=NOW) is None
    against = objection(replace(RECEIPT, **change), host=HOST.peer, lease=LEASE, now=NOW)  # type: ignore[arg-type]
    assert against is not None
    assert why in against


def test_a_host_signs_once_a_lease_and_remembers_it(tmp_path: Path) -> None:
    accounts = HostAccounts(HOST, tmp_path, now=lambda: NOW)
    signed = sign(RECEIPT, REQUESTER)
    assert open_countersigned(accounts.countersign(signed, LEASE)) == RECEIPT
    assert accounts.countersign(signed, LEASE) == b""
    assert accounts.countersign(b"garbage", replace(LEASE, id="0")) == b""
    assert accounts.countersign(sign(RECEIPT, MALLORY), replace(LEASE, id="1")) == b""
    accounts.ended(LEASE, "released")
    accounts.ended(replace(LEASE, id="2", granted_at=NOW - 5), "expired")
    later, first = lent(tmp_path)
    assert (first.requester, first.answers, first.tokens, first.seconds) == (REQUESTER.peer, 2, 70, 13.0)
    assert (later.answers, later.ended) == (None, "expired")
    accounts.countersign(b"garbage", replace(LEASE, id="3"))
    assert accounts.countersign(signed, replace(LEASE, id="3")) == b"", "who babbles has had the attempt"
    for index in range(4):
        accounts.ended(replace(LEASE, id=f"{index}"), "released")
    assert accounts._receipts == {}


def test_what_a_host_cannot_write_ends_no_lease(tmp_path: Path) -> None:
    (tmp_path / "lent.sqlite").write_bytes(b"no database at all" * 100)
    HostAccounts(HOST, tmp_path, now=time.time).ended(LEASE, "released")
