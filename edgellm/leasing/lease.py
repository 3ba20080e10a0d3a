"""The life of a lease, and the book of a host's leases. Pure: every change gives a new book."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from edgellm.leasing.terms import Terms
from edgellm.types.advert import Device, Engine, ModelOffer


class Phase(Enum):
    RESERVED = "reserved"
    """Devices are kept; nothing runs."""
    RUNNING = "running"
    """The plan is accepted; a cell runs or is being made."""


@dataclass(frozen=True, slots=True)
class Lease:
    id: str
    cluster: str
    requester: str
    devices: tuple[str, ...]
    memory_bytes: int
    """On each of the devices."""
    first_layer: int
    end_layer: int
    digest: str
    fabric: str
    phase: Phase
    granted_at: float


@dataclass(frozen=True, slots=True)
class Refusal:
    code: str
    """One of the codes in `proto/wire.proto`, message Refused."""
    reason: str


@dataclass(frozen=True, slots=True)
class Book:
    """All that a host lends, and to whom. `devices` hold the memory lent; what leases take is subtracted."""

    devices: tuple[Device, ...]
    models: tuple[ModelOffer, ...]
    engine: Engine
    fabrics: tuple[str, ...]
    max_leases: int
    leases: tuple[Lease, ...] = ()
    draining: bool = False
    lends_until: float | None = None
    """Unix time at which all leases end; None: not known beforehand."""

    @property
    def free_leases(self) -> int:
        return 0 if self.draining else max(0, self.max_leases - len(self.leases))

    def free_memory_bytes(self, device: str) -> int:
        lent = next((entry.memory_bytes for entry in self.devices if entry.id == device), 0)
        return lent - sum(lease.memory_bytes for lease in self.leases if device in lease.devices)

    @property
    def free_devices(self) -> tuple[str, ...]:
        """Devices that a further lease could use, most free memory first."""
        if not self.free_leases:
            return ()
        free = [(self.free_memory_bytes(device.id), device.id) for device in self.devices]
        return tuple(device for memory, device in sorted(free, key=lambda entry: -entry[0]) if memory > 0)

    def reserve(
        self, terms: Terms, *, lease: str, requester: str, now: float
    ) -> tuple[Book, Lease] | Refusal:
        """Grants `terms` in full or refuses them in full."""
        if self.draining:
            return Refusal("draining", "the host takes no new leases: its owner stops or pauses it")
        if not self.free_leases:
            return Refusal("busy", f"all {self.max_leases} of its leases are taken")
        offer = next((offer for offer in self.models if offer.digest == terms.digest), None)
        if offer is None:
            return Refusal("model", "it does not hold a model of this digest")
        if not 0 <= terms.first_layer < terms.end_layer <= offer.layers:
            return Refusal(
                "invalid", f"layers {terms.first_layer} to {terms.end_layer} of a model with {offer.layers}"
            )
        if terms.engine != self.engine:
            return Refusal("engine", f"it runs {self.engine}, the plan assumes {terms.engine}")
        if terms.fabric not in self.fabrics:
            return Refusal("fabric", f"it does not offer --network {terms.fabric}")
        if any(held.cluster == terms.cluster for held in self.leases):
            return Refusal("invalid", "it holds a lease of this cluster already")
        if terms.devices < 1 or terms.memory_bytes < 1:
            return Refusal("invalid", f"{terms.devices} devices of {terms.memory_bytes} bytes")
        fitting = [dev for dev in self.free_devices if self.free_memory_bytes(dev) >= terms.memory_bytes]
        if len(fitting) < terms.devices:
            return Refusal(
                "memory",
                f"{len(fitting)} of its devices have the memory free that {terms.devices} shall have",
            )
        granted = Lease(
            id=lease,
            cluster=terms.cluster,
            requester=requester,
            devices=tuple(sorted(fitting[: terms.devices])),
            memory_bytes=terms.memory_bytes,
            first_layer=terms.first_layer,
            end_layer=terms.end_layer,
            digest=terms.digest,
            fabric=terms.fabric,
            phase=Phase.RESERVED,
            granted_at=now,
        )
        return replace(self, leases=(*self.leases, granted)), granted

    def run(self, lease: str) -> Book:
        """The lease's plan was accepted."""
        return replace(
            self,
            leases=tuple(
                replace(held, phase=Phase.RUNNING) if held.id == lease else held for held in self.leases
            ),
        )

    def release(self, lease: str) -> Book:
        return replace(self, leases=tuple(held for held in self.leases if held.id != lease))

    def drain(self) -> Book:
        """Grants nothing any more; what runs goes on."""
        return replace(self, draining=True)

    def resume(self) -> Book:
        return replace(self, draining=False)
