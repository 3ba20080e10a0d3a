"""The node's block service, seen from the cell: `proto/blocks.proto` on a Unix socket."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc

from edgellm.errors import UsageError
from edgellm.kv.region import Region
from edgellm.wire import blocks_pb2 as pb
from edgellm.wire import blocks_pb2_grpc

log = logging.getLogger(__name__)

PART_BYTES = 1 << 20
_STORE_TIMEOUT_S = 30.0
_REPORT_TIMEOUT_S = 2.0
SILENCE_S = 10.0
"""A node that once did not answer in time is not asked for so long: its silence must not cost every prompt the whole wait."""


@dataclass(frozen=True)
class FoundPiece:
    """A piece that somebody has. `holder` is a peer id; empty for the node itself."""

    region: Region
    size_bytes: int
    holder: str


class NodeBlocks:
    """Finds, fetches and stores sealed pieces. Nothing here raises for what a node can do wrong: that is a miss."""

    def __init__(self, socket_path: str) -> None:
        options = [
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._channel = grpc.insecure_channel(f"unix:{socket_path}", options=options)
        self._stub = blocks_pb2_grpc.BlocksStub(self._channel)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._ask_again_at = 0.0

    def find(
        self, names: Sequence[bytes], region: Region, chunk_tokens: int, timeout_s: float
    ) -> list[tuple[FoundPiece, ...]]:
        """The pieces of the first chunks; shorter than `names` where the rest is to be computed."""
        with self._lock:
            if time.monotonic() < self._ask_again_at:
                return []
        request = pb.FindRequest(names=names, region=region_to_wire(region), chunk_tokens=chunk_tokens)
        try:
            reply = self._stub.Find(request, timeout=timeout_s)
        except grpc.RpcError as error:
            self._failed("Find", error)
            return []
        try:
            return [
                tuple(
                    FoundPiece(region_from_wire(piece.region), piece.size_bytes, piece.holder)
                    for piece in chunk.pieces
                )
                for chunk in reply.chunks[: len(names)]
            ]
        except UsageError:
            log.warning("the node found pieces of regions that are none")
            return []

    def fetch(
        self, name: bytes, piece: FoundPiece, most_bytes: int, timeout_s: float
    ) -> tuple[bytearray, str] | None:
        """A sealed piece and who sent it; None where it does not come, or has more than `most_bytes`."""
        request = pb.FetchRequest(name=name, region=region_to_wire(piece.region))
        call = self._stub.Fetch(request, timeout=timeout_s)
        content = bytearray()
        holder = piece.holder
        first = True
        try:
            for part in call:
                if first:
                    holder, first = part.holder, False
                content += part.data
                if len(content) > most_bytes:
                    call.cancel()
                    return content, holder
        except grpc.RpcError as error:
            self._failed("Fetch", error)
            return None
        return content, holder

    def store(self, name: bytes, region: Region, sealed: bytes) -> bool:
        """Whether the node keeps it."""
        try:
            reply = self._stub.Store(_store_parts(name, region, sealed), timeout=_STORE_TIMEOUT_S)
        except grpc.RpcError as error:
            self._failed("Store", error)
            return False
        return bool(reply.kept)

    def report(self, name: bytes, region: Region, holder: str, outcome: str, tokens: int) -> None:
        """Says what became of a piece. Lost where the node does not answer."""
        request = pb.ReportRequest(
            name=name, region=region_to_wire(region), holder=holder, outcome=outcome, tokens=tokens
        )
        try:
            self._stub.Report(request, timeout=_REPORT_TIMEOUT_S)
        except grpc.RpcError as error:
            self._failed("Report", error)

    def close(self) -> None:
        """Ends all calls."""
        self._channel.close()

    def _failed(self, call: str, error: grpc.RpcError) -> None:
        code = error.code() if isinstance(error, grpc.Call) else None
        if code == grpc.StatusCode.NOT_FOUND:
            return
        if call == "Find" and code == grpc.StatusCode.DEADLINE_EXCEEDED:
            with self._lock:
                self._ask_again_at = time.monotonic() + SILENCE_S
        log.warning("the node's %s failed: %s", call, code)


def region_to_wire(region: Region) -> pb.Region:
    return pb.Region(
        first_layer=region.first_layer,
        end_layer=region.end_layer,
        first_head=region.first_head,
        end_head=region.end_head,
    )


def region_from_wire(region: pb.Region) -> Region:
    return Region(region.first_layer, region.end_layer, region.first_head, region.end_head)


def _store_parts(name: bytes, region: Region, sealed: bytes) -> Iterator[pb.StorePart]:
    yield pb.StorePart(name=name, region=region_to_wire(region), data=sealed[:PART_BYTES])
    for start in range(PART_BYTES, len(sealed), PART_BYTES):
        yield pb.StorePart(data=sealed[start : start + PART_BYTES])
