"""What a host lends, as it says in its signed advert."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Engine:
    """Members of one cluster must agree in all of it: Ray refuses other versions, and KV layouts differ."""

    backend: str
    device_kind: str
    versions: tuple[tuple[str, str], ...]
    """Sorted (distribution, version) pairs."""

    def __str__(self) -> str:
        versions = " ".join(f"{name} {version}" for name, version in self.versions)
        return f"{self.backend}/{self.device_kind} ({versions})"


@dataclass(frozen=True, slots=True)
class Device:
    id: str
    kind: str
    name: str
    memory_bytes: int
    """Lent; at most what is installed."""
    bandwidth_bytes_s: float
    """Measured memory bandwidth: what decoding one sequence is bound by."""
    flops: float
    """Measured matrix-multiply rate in FLOP/s: what prefill is bound by."""
    kv_layout: str = ""
    """What its KV cache is laid out for, in the backend's words. A hint for planning: names of KV pieces say all of it."""


@dataclass(frozen=True, slots=True)
class ModelOffer:
    name: str
    digest: str
    """SHA-256 of the canonical manifest, hex."""
    layers: int
    weights_bytes: int
    max_context: int


@dataclass(frozen=True, slots=True)
class HostAdvert:
    peer: str
    name: str
    sequence: int
    issued_at: float
    expires_at: float
    addresses: tuple[str, ...]
    engine: Engine
    devices: tuple[Device, ...]
    free_devices: tuple[str, ...]
    free_memory_bytes: int
    models: tuple[ModelOffer, ...]
    fabrics: tuple[str, ...]
    free_leases: int
    draining: bool = False
    lent_memory_bytes: int = 0
    """All that it lends, free or leased now; 0 where it does not say."""
    lends_until: float | None = None
    """Unix time at which it stops lending; None where it does not say."""

    @property
    def load(self) -> float:
        """How much of what it lends is lent now, 0 to 1: of its memory, or of its devices where it does not say how much memory
        that is. 1 where it grants no further lease, however much is free.
        """
        if self.draining or not self.free_leases:
            return 1.0
        if self.lent_memory_bytes:
            return min(1.0, max(0.0, 1 - self.free_memory_bytes / self.lent_memory_bytes))
        free = sum(device.id in self.free_devices for device in self.devices)
        return 1 - free / len(self.devices) if self.devices else 1.0

    def offer(self, model: str) -> ModelOffer | None:
        """The offer for a model asked for by name or by digest."""
        return next((offer for offer in self.models if model in (offer.name, offer.digest)), None)
