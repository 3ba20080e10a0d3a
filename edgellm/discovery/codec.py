"""HostAdvert <-> the signed envelope that travels. Everything that arrives is bounded before it is believed."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from edgellm.errors import ProtocolViolation
from edgellm.p2p.envelope import open_envelope, seal
from edgellm.p2p.identity import Identity
from edgellm.types.advert import Device, Engine, HostAdvert, ModelOffer
from edgellm.wire import wire_pb2

DOMAIN = "edgellm-advert-v1"
PAYLOAD_TYPE = b"/edgellm/advert"
MAX_ADVERT_BYTES = 64 * 1024
MAX_LISTED = 64
"""Devices, models or addresses in one advert."""
MAX_TEXT = 256
_LAST_UNIX_MS = 253_402_300_799_000  # the year 9999


def seal_advert(advert: HostAdvert, identity: Identity) -> bytes:
    """The envelope that carries `advert`, signed by `identity`."""
    return seal(identity, DOMAIN, PAYLOAD_TYPE, _to_wire(advert).SerializeToString())


def open_advert(envelope: bytes) -> tuple[str, HostAdvert]:
    """The signer's peer id and the advert. Raises ProtocolViolation for anything forged, malformed or too big."""
    peer, payload = open_envelope(envelope, DOMAIN, PAYLOAD_TYPE, max_bytes=MAX_ADVERT_BYTES)
    try:
        message = wire_pb2.HostAdvert.FromString(payload)
    except DecodeError as error:
        raise ProtocolViolation(f"peer {peer} signed something that is no advert") from error
    return peer, _from_wire(message)


def engine_to_wire(engine: Engine) -> wire_pb2.Engine:
    return wire_pb2.Engine(
        backend=engine.backend, device_kind=engine.device_kind, versions=dict(engine.versions)
    )


def engine_from_wire(message: wire_pb2.Engine) -> Engine:
    """Raises ProtocolViolation when a text is too long or there are too many versions."""
    _bounded(message.versions, "engine versions")
    return Engine(
        backend=_text(message.backend),
        device_kind=_text(message.device_kind),
        versions=tuple(sorted((_text(name), _text(version)) for name, version in message.versions.items())),
    )


def _to_wire(advert: HostAdvert) -> wire_pb2.HostAdvert:
    return wire_pb2.HostAdvert(
        peer=advert.peer,
        name=advert.name,
        sequence=advert.sequence,
        issued_unix_ms=round(advert.issued_at * 1000),
        expires_unix_ms=round(advert.expires_at * 1000),
        addresses=advert.addresses,
        engine=engine_to_wire(advert.engine),
        devices=[
            wire_pb2.Device(
                id=device.id,
                kind=device.kind,
                name=device.name,
                memory_bytes=device.memory_bytes,
                bandwidth_bytes_s=device.bandwidth_bytes_s,
                flops=device.flops,
                kv_layout=device.kv_layout,
            )
            for device in advert.devices
        ],
        free_devices=advert.free_devices,
        free_memory_bytes=advert.free_memory_bytes,
        models=[
            wire_pb2.ModelOffer(
                name=offer.name,
                digest=bytes.fromhex(offer.digest),
                layers=offer.layers,
                weights_bytes=offer.weights_bytes,
                max_context=offer.max_context,
            )
            for offer in advert.models
        ],
        fabrics=advert.fabrics,
        free_leases=advert.free_leases,
        draining=advert.draining,
        lent_memory_bytes=advert.lent_memory_bytes,
        lends_until_unix_ms=round((advert.lends_until or 0) * 1000),
    )


def _from_wire(message: wire_pb2.HostAdvert) -> HostAdvert:
    for name in ("addresses", "devices", "free_devices", "models", "fabrics"):
        _bounded(getattr(message, name), name)
    devices = tuple(
        Device(
            id=_text(device.id),
            kind=_text(device.kind),
            name=_text(device.name),
            memory_bytes=device.memory_bytes,
            bandwidth_bytes_s=_positive(device.bandwidth_bytes_s, "bandwidth"),
            flops=_positive(device.flops, "FLOP rate"),
            kv_layout=_text(device.kv_layout),
        )
        for device in message.devices
    )
    models = tuple(
        ModelOffer(
            name=_text(offer.name),
            digest=_digest(offer.digest),
            layers=offer.layers,
            weights_bytes=offer.weights_bytes,
            max_context=offer.max_context,
        )
        for offer in message.models
    )
    return HostAdvert(
        peer=_text(message.peer),
        name=_text(message.name),
        sequence=message.sequence,
        issued_at=message.issued_unix_ms / 1000,
        expires_at=message.expires_unix_ms / 1000,
        addresses=tuple(_text(address) for address in message.addresses),
        engine=engine_from_wire(message.engine),
        devices=devices,
        free_devices=tuple(_text(device) for device in message.free_devices),
        free_memory_bytes=message.free_memory_bytes,
        models=models,
        fabrics=tuple(_text(fabric) for fabric in message.fabrics),
        free_leases=message.free_leases,
        draining=message.draining,
        lent_memory_bytes=message.lent_memory_bytes,
        lends_until=_moment(message.lends_until_unix_ms),
    )


def _text(value: str) -> str:
    """Text for a terminal: bounded, and without control characters that would move a stranger's cursor."""
    if len(value) > MAX_TEXT:
        raise ProtocolViolation(f"a text of {len(value)} characters in an advert; the limit is {MAX_TEXT}")
    if not value.isprintable():
        raise ProtocolViolation("a text with control characters in an advert")
    return value


def _bounded(values: object, what: str) -> None:
    if len(values) > MAX_LISTED:  # type: ignore[arg-type] # protobuf's containers share no sized base
        raise ProtocolViolation(f"more than {MAX_LISTED} {what} in an advert")


def _positive(value: float, what: str) -> float:
    if not 0 < value < 1e18:  # also refuses NaN
        raise ProtocolViolation(f"a {what} of {value} in an advert")
    return value


def _moment(unix_ms: int) -> float | None:
    if unix_ms > _LAST_UNIX_MS:
        raise ProtocolViolation("a moment after the end of the calendar in an advert")
    return unix_ms / 1000 or None


def _digest(value: bytes) -> str:
    if len(value) != 32:
        raise ProtocolViolation(f"a model digest of {len(value)} bytes in an advert; SHA-256 has 32")
    return value.hex()
