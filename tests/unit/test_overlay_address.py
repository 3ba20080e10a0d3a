"""Addresses of members."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import ProtocolViolation
from edgellm.overlay.address import check_member_address, check_members, member_addresses


def test_head_first() -> None:
    assert member_addresses(7, 3) == ("10.88.7.1", "10.88.7.2", "10.88.7.3")
    assert member_addresses(0, 253)[-1] == "10.88.0.253"


@given(st.integers(0, 255), st.integers(1, 253))
def test_all_are_members_of_one_cluster(cluster: int, members: int) -> None:
    addresses = member_addresses(cluster, members)
    assert check_members(addresses) == addresses


@pytest.mark.parametrize(("cluster", "members"), [(256, 1), (-1, 1), (0, 0), (0, 254)])
def test_out_of_range(cluster: int, members: int) -> None:
    with pytest.raises(ValueError, match="cluster"):
        member_addresses(cluster, members)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "10.88.7",
        "10.89.7.1",
        "10.88.7.0",
        "10.88.7.254",
        "10.88.7.255",
        "127.0.0.1",
        "::1",
        "10.88.7.1/24",
    ],
)
def test_not_a_member(address: str) -> None:
    with pytest.raises(ProtocolViolation):
        check_member_address(address)


@pytest.mark.parametrize(
    "addresses",
    [
        ("10.88.7.1", "10.88.7.1"),
        ("10.88.7.2", "10.88.7.3"),
        ("10.88.7.1", "10.88.8.2"),
        ("10.88.7.1", "8.8.8.8"),
    ],
    ids=["twice", "no head", "two clusters", "not overlay"],
)
def test_not_a_cluster(addresses: tuple[str, ...]) -> None:
    with pytest.raises(ProtocolViolation):
        check_members(addresses)
