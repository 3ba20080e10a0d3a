"""What cells and engines say, and files and options of this machine."""

from __future__ import annotations

import json
from types import SimpleNamespace

import msgspec

from edgellm.engine.question import piece_from_wire
from edgellm.hosting.quota import parse_lending_quota
from edgellm.hosting.quota_ledger import decode_ledger
from edgellm.hosting.runner import tokens_said
from edgellm.sessions.daemon_order import Order
from edgellm.wire import backend_pb2
from tests.fuzz.decoder import EARLY, Decoder
from tests.fuzz.peer import at_once, wire


def read_cell_event(data: bytes) -> None:
    from edgellm.cells.cell import Cell

    cell = Cell.__new__(Cell)
    cell._understood_s = 0.0
    kept = bytearray()
    cell._keep = kept.extend  # type: ignore[method-assign, assignment]
    cell._ready = SimpleNamespace(is_set=lambda: False, set=lambda: None)  # type: ignore[assignment]
    at_once(cell._handle_line(data))
    event = getattr(cell, "_first_event", None)
    if isinstance(event, dict):
        tokens_said(event)
        str(event.get("detail", ""))[:500].encode("utf-8", "replace")


def read_engine_event(data: bytes) -> None:
    piece_from_wire(backend_pb2.GenerateEvent.FromString(data))


def read_order(data: bytes) -> None:
    msgspec.json.decode(data, type=Order)


def read_ledger(data: bytes) -> None:
    decode_ledger(data)


def read_quota(data: bytes) -> None:
    parse_lending_quota(data.decode("utf-8", "replace"))


DECODERS = (
    Decoder(
        "cell events",
        read_cell_event,
        lambda: [b'{"event": "tokens", "count": 7}', json.dumps({"event": "failed", "detail": "x"}).encode()],
        share=0.5,
    ),
    Decoder("engine events", read_engine_event, lambda: [wire(backend_pb2.GenerateEvent())], EARLY, 0.5),
    Decoder(
        "session order",
        read_order,
        lambda: [msgspec.json.encode(Order("n", "m", "/d", (), 900.0))],
        (msgspec.DecodeError, UnicodeDecodeError),
        0.3,
    ),
    Decoder(
        "quota ledger",
        read_ledger,
        lambda: [
            b'{"version":1,"taken":[{"who":"*","kind":"time","period":"day","began":1.0,"amount":2.0}]}'
        ],
        (ValueError,),
        0.3,
    ),
    Decoder("quota", read_quota, lambda: [b"2h/day,1e6tok/day,10GB/week,30min/hour/member"], share=0.3),
)
