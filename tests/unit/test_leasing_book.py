"""The book of a host's leases: what it grants, what it refuses and why."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.leasing.lease import Book, Lease, Phase, Refusal
from tests.unit.samples import ENGINE, GIB, book, terms


def grant(held: Book, number: int = 0, **changes: object) -> tuple[Book, Lease]:
    wanted = replace(terms(cluster=f"{number:032x}"), **changes)
    granted = held.reserve(wanted, lease=f"lease-{number}", requester="r", now=0.0)
    assert not isinstance(granted, Refusal), granted
    return granted


def test_a_grant_takes_the_lease_and_the_memory() -> None:
    held, lease = grant(book())
    assert lease.phase is Phase.RESERVED
    assert lease.devices == ("0",)
    assert held.free_leases == 0
    assert held.free_devices == ()
    assert held.free_memory_bytes("0") == 3 * GIB
    assert held.run(lease.id).leases[0].phase is Phase.RUNNING
    assert held.release(lease.id) == book()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"digest": "cd" * 32}, "model"),
        ({"end_layer": 9}, "invalid"),
        ({"first_layer": 8}, "invalid"),
        ({"engine": replace(ENGINE, versions=(("vllm", "0.31.0"),))}, "engine"),
        ({"fabric": "direct"}, "fabric"),
        ({"memory_bytes": 5 * GIB}, "memory"),
        ({"devices": 2}, "memory"),
        ({"devices": 0}, "invalid"),
        ({"memory_bytes": 0}, "invalid"),
    ],
)
def test_what_cannot_be_granted_is_refused_with_its_reason(changes: dict[str, object], code: str) -> None:
    refusal = book().reserve(replace(terms(), **changes), lease="l", requester="r", now=0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.code == code
    assert refusal.reason


def test_a_full_host_is_busy_and_a_draining_one_says_so() -> None:
    held, _ = grant(book())
    busy = held.reserve(terms(cluster="f" * 32), lease="l", requester="r", now=0.0)
    assert isinstance(busy, Refusal)
    assert busy.code == "busy"
    draining = book().drain().reserve(terms(), lease="l", requester="r", now=0.0)
    assert isinstance(draining, Refusal)
    assert draining.code == "draining"
    assert book().drain().free_leases == 0


def test_one_cluster_gets_one_lease() -> None:
    held, _ = grant(book(devices=2, max_leases=2))
    again = held.reserve(terms(cluster=f"{0:032x}"), lease="l", requester="r", now=0.0)
    assert isinstance(again, Refusal)
    assert again.code == "invalid"


def test_leases_spread_over_devices_with_the_most_free_memory() -> None:
    held, first = grant(book(devices=2, max_leases=2), 1)
    _, second = grant(held, 2)
    assert set(first.devices) | set(second.devices) == {"0", "1"}


@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 3), st.integers(1, 6 * GIB)), max_size=30
    )
)
def test_memory_is_never_lent_twice(steps: list[tuple[bool, int, int, int]]) -> None:
    held = book(devices=3, max_leases=4)
    for release, number, devices, memory_bytes in steps:
        if release:
            held = held.release(f"lease-{number}")
            continue
        wanted = terms(cluster=f"{number:032x}", devices=devices, memory_bytes=memory_bytes)
        granted = held.reserve(wanted, lease=f"lease-{number}", requester="r", now=0.0)
        if not isinstance(granted, Refusal):
            held = granted[0]
        assert len(held.leases) <= 4
        assert all(held.free_memory_bytes(entry.id) >= 0 for entry in held.devices)
    for lease in held.leases:
        held = held.release(lease.id)
    assert held == book(devices=3, max_leases=4)
