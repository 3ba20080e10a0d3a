"""Who comes in at a node's door, and that every place is given back."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest

from edgellm.p2p.gate import ConnectionGate
from edgellm.p2p.limits import ConnectionLimits, Origin, origin, stream_limits
from edgellm.p2p.pace import Pace, Rate
from edgellm.p2p.stream_gate import ProtocolGate, StreamCounts

FAST = Rate(burst=1e6, per_s=1e6)
LIMITS = ConnectionLimits(
    inbound=20, per_address=6, per_network=9, pending=8, pending_per_address=4, rate_per_address=FAST
)
HERE, NEXT_DOOR, ELSEWHERE = origin("8.8.8.1"), origin("8.8.8.2"), origin("9.9.9.9")


def enter(gate: ConnectionGate, stack: ExitStack, come_from: Origin, *, known: bool = True) -> str | None:
    against = gate.objection(come_from, 0.0)
    if against is None:
        place = stack.enter_context(gate.admit(come_from))
        if known:
            place.known()
    return against


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("8.8.8.8", Origin("8.8.8.8/32", "8.8.8.0/24")),
        ("::ffff:8.8.8.8", Origin("8.8.8.8/32", "8.8.8.0/24")),
        ("2a00:1450:4001:1:2:3:4:5", Origin("2a00:1450:4001:1::/64", "2a00:1450:4001::/48")),
        ("192.168.1.7", Origin("192.168.1.7/32", "")),
        ("fe80::1%eth0", Origin("fe80::/64", "")),
        ("127.0.0.1", Origin("", "")),
        ("::1", Origin("", "")),
        ("", Origin("", "")),
    ],
)
def test_an_origin_is_an_address_and_the_network_around_it(host: str, expected: Origin) -> None:
    assert origin(host) == expected


def test_one_address_cannot_take_all_places_and_gets_them_back() -> None:
    gate = ConnectionGate(LIMITS)
    with ExitStack() as stack:
        assert [enter(gate, stack, HERE) for _ in range(6)] == [None] * 6
        assert "8.8.8.1" in str(enter(gate, stack, HERE))
        assert [enter(gate, stack, NEXT_DOOR) for _ in range(3)] == [None] * 3
        assert "8.8.8.0/24" in str(enter(gate, stack, NEXT_DOOR))
        assert enter(gate, stack, ELSEWHERE) is None
    assert (gate.inbound, gate.pending) == (0, 0)
    with ExitStack() as stack:
        assert enter(gate, stack, HERE) is None
    assert not gate._by_address
    assert not gate._by_network
    assert not gate._pending_by_address


def test_those_who_do_not_say_who_they_are_leave_room_for_those_who_do() -> None:
    gate = ConnectionGate(LIMITS)
    with ExitStack() as stack:
        assert [enter(gate, stack, HERE, known=False) for _ in range(4)] == [None] * 4
        assert "said" in str(enter(gate, stack, HERE, known=False))
        assert [enter(gate, stack, ELSEWHERE, known=False) for _ in range(4)] == [None] * 4
        assert "said" in str(enter(gate, stack, origin("1.1.1.1")))
    assert gate.pending == 0


def test_this_machine_is_bounded_by_the_total_only() -> None:
    gate = ConnectionGate(LIMITS)
    with ExitStack() as stack:
        assert [enter(gate, stack, origin("127.0.0.1")) for _ in range(20)] == [None] * 20
        assert "all the connections" in str(enter(gate, stack, origin("127.0.0.1")))


def test_an_address_connects_no_faster_than_its_rate() -> None:
    gate = ConnectionGate(replace(LIMITS, rate_per_address=Rate(burst=3, per_s=1)))
    assert [gate.objection(HERE, 0.0) for _ in range(3)] == [None] * 3
    assert "too often" in str(gate.objection(HERE, 0.5))
    assert gate.objection(HERE, 2.0) is None
    assert gate.objection(ELSEWHERE, 0.5) is None


def test_each_key_has_a_pace_of_its_own() -> None:
    pace = Pace(Rate(burst=64, per_s=32), max_keys=100)
    assert sum(pace.admits("a", 0.0) for _ in range(1000)) == 64
    assert pace.admits("b", 0.0)
    assert sum(pace.admits("a", 1.0) for _ in range(1000)) == 32
    for number in range(5000):
        pace.admits(f"peer {number}", 2.0)
    assert len(pace._buckets) == 100


def test_streams_are_counted_for_each_peer_and_for_all() -> None:
    counts = StreamCounts(per_peer=2, total=3)
    with ExitStack() as stack:
        for peer in ("a", "a", "b"):
            assert counts.has_room(peer)
            stack.enter_context(counts.one_of(peer))
        assert not counts.has_room("a")
        assert not counts.has_room("c")
    assert counts.has_room("a")
    assert counts.total == 0
    assert not counts._open


def test_a_protocol_has_its_own_limits() -> None:
    now = 0.0
    gate = ProtocolGate("/edgellm/lease/1", now=lambda: now)
    burst = int(stream_limits("/edgellm/lease/1").rate.burst)
    assert sum(gate.admits("a") for _ in range(100)) == burst
    assert gate.admits("b")
    now = 5.0
    assert sum(gate.admits("a") for _ in range(100)) == 5
