"""What a relay gives to strangers, and that it gives no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgellm.p2p.relay_limits import (
    HOUR_S,
    RESERVATION_S,
    Allowance,
    Circuit,
    Ledger,
    Refusal,
    RelayLimits,
)

EACH = Allowance(circuits=2, circuit_s=60.0, circuit_bytes=1000, hour_bytes=1500)
LIMITS = RelayLimits(reservations=4, circuits=3, hour_bytes=4000, each=EACH, per_address=2)


def opened(
    ledger: Ledger, source: str = "s", address: str = "45.0.0.1", target: str = "t", now: float = 0.0
) -> Circuit:
    circuit = ledger.open(source, address, target, now)
    assert isinstance(circuit, Circuit), circuit
    return circuit


def with_place(limits: RelayLimits = LIMITS, *targets: str) -> Ledger:
    ledger = Ledger(limits)
    for number, target in enumerate(targets or ("t",)):
        assert ledger.reserve(target, f"45.1.0.{number}", 0.0) is None
    return ledger


def test_places_are_few_and_fewer_for_one_address() -> None:
    ledger = Ledger(LIMITS)
    assert [ledger.reserve(f"a{n}", "45.0.0.1", 0.0) for n in range(3)] == [None, None, Refusal.RESERVATIONS]
    assert [ledger.reserve(f"b{n}", f"45.0.1.{n}", 0.0) for n in range(3)] == [
        None,
        None,
        Refusal.RESERVATIONS,
    ]
    assert ledger.reserve("a0", "45.0.0.1", 10.0) is None  # its own place, renewed
    assert ledger.reserve("c", "45.0.2.1", RESERVATION_S + 1) is None  # the others have expired


def test_nobody_is_reached_who_has_no_place() -> None:
    ledger = with_place()
    assert ledger.open("s", "45.0.0.1", "other", 0.0) is Refusal.NO_RESERVATION
    assert ledger.open("s", "45.0.0.1", "t", RESERVATION_S + 1) is Refusal.NO_RESERVATION


def test_circuits_are_bounded_at_both_ends_in_all_and_for_an_address() -> None:
    ledger = with_place(LIMITS, "t", "u", "v")
    first = opened(ledger)
    opened(ledger)
    assert ledger.open("s", "45.0.0.1", "u", 0.0) is Refusal.CIRCUITS  # of the source
    assert ledger.open("x", "45.0.0.2", "t", 0.0) is Refusal.CIRCUITS  # of the target
    opened(ledger, "y", "45.0.0.3", "u")
    assert ledger.open("z", "45.0.0.4", "v", 0.0) is Refusal.CIRCUITS  # in all
    ledger.close(first)
    opened(ledger, "z", "45.0.0.4", "v")


def test_new_identities_at_one_address_get_no_more() -> None:
    limits = RelayLimits(circuits=100, each=EACH, per_address=2)
    ledger = with_place(limits, *(f"t{n}" for n in range(8)))
    results = [ledger.open(f"sybil {n}", "45.0.0.1", f"t{n}", 0.0) for n in range(6)]
    assert sum(isinstance(result, Circuit) for result in results) == EACH.circuits * limits.per_address


def test_a_circuit_ends_at_its_bytes_and_a_peer_at_those_of_the_hour() -> None:
    ledger = with_place()
    circuit = opened(ledger)
    assert ledger.charge(circuit, 600, 1.0)
    assert not ledger.charge(circuit, 500, 1.0)
    assert ledger.charge(circuit, 400, 1.0)
    ledger.close(circuit)
    again = opened(ledger)
    assert not ledger.charge(again, 600, 2.0)  # 1,500 in an hour
    assert ledger.charge(again, 500, 2.0)
    ledger.close(again)
    assert ledger.open("s", "45.0.0.1", "t", 3.0) is Refusal.BYTES
    ledger.reserve("t", "45.1.0.0", 3.0)
    assert isinstance(ledger.open("s", "45.0.0.1", "t", HOUR_S), Circuit)


def test_members_have_what_their_standing_says_and_take_nothing_from_strangers() -> None:
    member = Allowance(circuits=50, circuit_s=1e6, circuit_bytes=1 << 40, hour_bytes=1 << 40)
    ledger = Ledger(LIMITS, lambda peer: member if peer.startswith("member") else None)
    for number in range(10):
        assert ledger.reserve(f"member {number}", "45.0.0.1", 0.0) is None
    between = opened(ledger, "member 1", "45.0.0.1", "member 2")
    assert between.circuit_s == 1e6
    assert ledger.charge(between, 1 << 30, 0.0)
    strangers = opened(ledger, "s", "45.0.0.9", "member 2")
    assert strangers.circuit_s == EACH.circuit_s
    assert ledger.charge(strangers, 1000, 0.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 700), st.floats(0, 3 * HOUR_S)), max_size=60))
def test_whatever_is_tried_the_limits_hold(tries: list[tuple[int, int, float]]) -> None:
    ledger = Ledger(LIMITS)
    sent: dict[tuple[str, int], int] = {}
    total: dict[int, int] = {}
    for who, size, now in sorted(tries, key=lambda each: each[2]):
        ledger.reserve("t", "45.1.0.0", now)
        circuit = ledger.open(f"s{who}", f"45.0.0.{who}", "t", now)
        if isinstance(circuit, Circuit):
            if ledger.charge(circuit, size, now):
                hour = int(now // HOUR_S)
                sent[circuit.source, hour] = sent.get((circuit.source, hour), 0) + size
                total[hour] = total.get(hour, 0) + size
            ledger.close(circuit)
    assert all(size <= EACH.hour_bytes for size in sent.values())
    assert all(
        size <= min(LIMITS.hour_bytes, EACH.hour_bytes) for size in total.values()
    )  # all go to one target
