"""What a relay gives to whom, and what it has given. Pure: the time is passed in.

A stranger can make itself a new identity whenever it likes, so that everything is counted under its IP address too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

RESERVATION_S = 3600.0
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one peer may have of a relay, at either end of its circuits."""

    circuits: int = 16
    """At once."""
    circuit_s: float = 7200.0
    circuit_bytes: int = 4 << 30
    hour_bytes: int = 8 << 30
    """Of all its circuits together, within each hour."""


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a relay gives to all strangers together, and to `each`; one IP address has as much as `per_address` peers."""

    reservations: int = 256
    circuits: int = 128
    hour_bytes: int = 64 << 30
    each: Allowance = field(default_factory=Allowance)
    per_address: int = 8


class Refusal(Enum):
    """Why a relay does not serve."""

    RESERVATIONS = "too many peers have a place at this relay"
    NO_RESERVATION = "that peer has no place at this relay"
    CIRCUITS = "too many circuits are open"
    BYTES = "the bytes of this hour are used up"


Standing = Callable[[str], Allowance | None]
"""What a peer may have that is no stranger (a member of a private swarm); None for strangers."""


@dataclass(eq=False, slots=True)
class Circuit:
    """One open circuit; `close` it with the ledger that opened it."""

    source: str
    source_address: str
    target: str
    strangers: bool
    circuit_s: float
    bytes_left: int


def is_stranger(peer: str) -> Allowance | None:
    """The standing of everybody where there are no members."""
    return None


class Ledger:
    """The books of one relay. `now` are monotonic seconds."""

    def __init__(self, limits: RelayLimits, standing: Standing = is_stranger) -> None:
        self.limits = limits
        self._standing = standing
        self._places: dict[str, tuple[str, float]] = {}
        self._circuits: Counter[str] = Counter()
        self._strangers_circuits = 0
        self._hour = -1
        self._bytes: Counter[str] = Counter()

    def allowance(self, peer: str) -> Allowance:
        return self._standing(peer) or self.limits.each

    def reserve(self, peer: str, address: str, now: float) -> Refusal | None:
        """A place for `peer`, connected from IP `address`, for `RESERVATION_S`; None when it has it now."""
        self._places = {who: place for who, place in self._places.items() if place[1] > now}
        if peer not in self._places and self._standing(peer) is None:
            same = sum(place[0] == address for place in self._places.values())
            if len(self._places) >= self.limits.reservations or same >= self.limits.per_address:
                return Refusal.RESERVATIONS
        self._places[peer] = (address, now + RESERVATION_S)
        return None

    def forget(self, gone: Callable[[str], bool]) -> None:
        """Places of peers that are gone are free."""
        self._places = {who: place for who, place in self._places.items() if not gone(who)}

    def has_place(self, peer: str, now: float) -> bool:
        return peer in self._places and self._places[peer][1] > now

    def open(self, source: str, source_address: str, target: str, now: float) -> Circuit | Refusal:
        """A circuit from `source` to `target`, which must have a place."""
        if not self.has_place(target, now):
            return Refusal.NO_RESERVATION
        strangers = self._standing(source) is None or self._standing(target) is None
        if strangers and self._strangers_circuits >= self.limits.circuits:
            return Refusal.CIRCUITS
        ends = [self.allowance(source), self.allowance(target)]
        for who, most in self._counted(source, source_address, target, lambda one: one.circuits):
            if self._circuits[who] >= most:
                return Refusal.CIRCUITS
        circuit = Circuit(
            source,
            source_address,
            target,
            strangers,
            circuit_s=min(end.circuit_s for end in ends),
            bytes_left=min(end.circuit_bytes for end in ends),
        )
        if not self._affordable(circuit, 1, now):
            return Refusal.BYTES
        self._circuits.update(self._names(circuit))
        self._strangers_circuits += strangers
        return circuit

    def charge(self, circuit: Circuit, size: int, now: float) -> bool:
        """Whether `size` more bytes may pass; they are counted if so."""
        if size > circuit.bytes_left or not self._affordable(circuit, size, now):
            return False
        circuit.bytes_left -= size
        for name in self._names(circuit):
            self._bytes[name] += size
        if circuit.strangers:
            self._bytes[""] += size
        return True

    def close(self, circuit: Circuit) -> None:
        self._circuits.subtract(self._names(circuit))
        self._circuits += Counter()  # drops the zeros
        self._strangers_circuits -= circuit.strangers

    def _affordable(self, circuit: Circuit, size: int, now: float) -> bool:
        hour = int(now // HOUR_S)
        if hour != self._hour:
            self._hour = hour
            self._bytes.clear()
        if circuit.strangers and self._bytes[""] + size > self.limits.hour_bytes:
            return False
        counted = self._counted(
            circuit.source, circuit.source_address, circuit.target, lambda one: one.hour_bytes
        )
        return all(self._bytes[who] + size <= most for who, most in counted)

    def _counted(
        self, source: str, address: str, target: str, of: Callable[[Allowance], int]
    ) -> list[tuple[str, int]]:
        counted = [(source, of(self.allowance(source))), (target, of(self.allowance(target)))]
        if self._standing(source) is None:
            counted.append((address, of(self.limits.each) * self.limits.per_address))
        return counted

    def _names(self, circuit: Circuit) -> tuple[str, ...]:
        return (circuit.source, circuit.target, circuit.source_address)
