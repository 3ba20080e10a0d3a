"""Which endpoints of other members a machine dials."""

from __future__ import annotations

from edgellm.cluster.door import may_dial, reachable_hosts
from edgellm.types.plan import Endpoint

LAN, OTHER = Endpoint("10.0.0.1", 7000), Endpoint("192.168.1.9", 7000)
LOOPBACK, LOOPBACK6 = Endpoint("127.0.0.1", 22), Endpoint("::1", 22)


def test_no_plan_makes_a_machine_dial_itself() -> None:
    assert may_dial((LOOPBACK, OTHER, LOOPBACK6, Endpoint("127.9.9.9", 1)), own=(LAN,)) == (OTHER,)
    assert may_dial((LOOPBACK,), own=(LAN, LOOPBACK)) == ()
    assert may_dial((LOOPBACK, OTHER), own=()) == (OTHER,)


def test_members_that_are_nowhere_else_meet_on_loopback() -> None:
    assert may_dial((LOOPBACK, OTHER), own=(Endpoint("127.0.0.1", 7000),)) == (LOOPBACK, OTHER)


def test_no_machine_names_an_address_that_plans_may_not() -> None:
    addresses = ("/ip4/169.254.7.7/tcp/4001", "/ip4/10.0.0.1/tcp/4001", "/ip4/127.0.0.1/tcp/4001")
    assert reachable_hosts(addresses) == ("10.0.0.1",)
    assert reachable_hosts(("/ip4/169.254.7.7/tcp/4001",)) == ("127.0.0.1",)
