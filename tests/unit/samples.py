"""Plausible values for tests: a host's book, terms for a lease, an advert."""

from __future__ import annotations

from edgellm.leasing.lease import Book
from edgellm.leasing.terms import Terms
from edgellm.types.advert import Device, Engine, HostAdvert, ModelOffer
from edgellm.types.model import ModelShape

GIB = 1 << 30
DIGEST = "ab" * 32
ENGINE = Engine("vllm", "cpu", (("python", "3.11"), ("ray", "2.60.0"), ("vllm", "0.32.0")))
OFFER = ModelOffer("tiny", DIGEST, layers=8, weights_bytes=4_000_000, max_context=2048)


SHAPE = ModelShape(
    architecture="LlamaForCausalLM",
    layer_bytes=(400_000,) * 8,
    embedding_bytes=400_000,
    head_bytes=400_000,
    attention_heads=4,
    kv_heads=4,
    head_dim=32,
    element_bytes=2,
    max_context=2048,
)


def device(identifier: str = "0", memory_bytes: int = 4 * GIB) -> Device:
    return Device(identifier, "cpu", "test CPU", memory_bytes, 20e9, 1e12)


def book(*, devices: int = 1, max_leases: int = 1) -> Book:
    return Book(
        devices=tuple(device(str(index)) for index in range(devices)),
        models=(OFFER,),
        engine=ENGINE,
        fabrics=("overlay",),
        max_leases=max_leases,
    )


def terms(
    *,
    cluster: str = "c" * 32,
    first_layer: int = 0,
    end_layer: int = 8,
    devices: int = 1,
    memory_bytes: int = GIB,
    fabric: str = "overlay",
    engine: Engine = ENGINE,
    digest: str = DIGEST,
) -> Terms:
    return Terms(cluster, digest, first_layer, end_layer, devices, memory_bytes, fabric, engine)


def advert(
    *,
    peer: str = "peer",
    sequence: int = 1,
    issued_at: float = 1000.0,
    expires_at: float = 1120.0,
    name: str = "alice",
) -> HostAdvert:
    return HostAdvert(
        peer=peer,
        name=name,
        sequence=sequence,
        issued_at=issued_at,
        expires_at=expires_at,
        addresses=("/ip4/10.0.0.1/tcp/4001",),
        engine=ENGINE,
        devices=(device(),),
        free_devices=("0",),
        free_memory_bytes=4 * GIB,
        models=(OFFER,),
        fabrics=("overlay",),
        free_leases=1,
    )
