"""A node's block service for engine tests: `proto/blocks.proto`, real, over a dictionary; and what can be wrong with one."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from edgellm.engine.backend import KvSharing
from edgellm.kv.region import Region, cover
from edgellm.wire import blocks_pb2 as pb
from edgellm.wire import blocks_pb2_grpc

PART_BYTES = 1 << 20
HOLDER = "a peer"


def region_of(message: pb.Region) -> Region:
    return Region(message.first_layer, message.end_layer, message.first_head, message.end_head)


def to_wire(region: Region) -> pb.Region:
    return pb.Region(
        first_layer=region.first_layer,
        end_layer=region.end_layer,
        first_head=region.first_head,
        end_head=region.end_head,
    )


@dataclass
class Blocks(blocks_pb2_grpc.BlocksServicer):
    """Keeps everything it is given. `hang` names the calls that never answer; `spoil` changes what Fetch gives."""

    pieces: dict[bytes, dict[Region, bytes]] = field(default_factory=dict)
    calls: list[tuple[str, float]] = field(default_factory=list)
    reports: list[pb.ReportRequest] = field(default_factory=list)
    asked: set[bytes] = field(default_factory=set)
    """Names that were looked for since `begin`: of these alone reports are kept."""
    hang: set[str] = field(default_factory=set)
    spoil: Callable[[bytes, Region, bytes], bytes] | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def stored(self) -> int:
        """How many pieces there are."""
        return sum(len(regions) for regions in self.pieces.copy().values())

    def begin(self) -> None:
        """A new test: what comes late of the prompts of another one counts no more."""
        self.asked.clear()
        self.reports.clear()

    def Find(self, request: pb.FindRequest, context: Any) -> pb.FindReply:
        self.asked.update(request.names)
        self._begin("Find", context)
        wanted = region_of(request.region)
        chunks = []
        for name in request.names:
            pieces = self.pieces.get(name, {})
            if cover(wanted, list(pieces)) is None:
                break
            chunks.append(
                pb.FoundChunk(
                    pieces=[
                        pb.Piece(region=to_wire(region), size_bytes=len(content), holder=HOLDER)
                        for region, content in pieces.items()
                    ]
                )
            )
        return pb.FindReply(chunks=chunks)

    def Fetch(self, request: pb.FetchRequest, context: Any) -> Iterator[pb.FetchPart]:
        self._begin("Fetch", context)
        region = region_of(request.region)
        content = self.pieces.get(request.name, {}).get(region)
        if content is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        if self.spoil is not None:
            content = self.spoil(request.name, region, content)
        for start in range(0, len(content), PART_BYTES):
            yield pb.FetchPart(data=content[start : start + PART_BYTES], holder=HOLDER)

    def Store(self, parts: Iterable[pb.StorePart], context: Any) -> pb.StoreReply:
        self._begin("Store", context)
        received = list(parts)
        pieces = self.pieces.setdefault(received[0].name, {})
        pieces.setdefault(region_of(received[0].region), b"".join(part.data for part in received))
        return pb.StoreReply(kept=True)

    def Report(self, request: pb.ReportRequest, context: Any) -> pb.ReportReply:
        if request.name in self.asked:
            self.reports.append(request)
        return pb.ReportReply()

    def count(self, call: str) -> int:
        return sum(name == call for name, _ in self.calls)

    def outcomes(self, number: int, timeout_s: float = 10) -> set[str]:
        """What at least that many reports say. Cells send them after the answer."""
        deadline = time.monotonic() + timeout_s
        while len(self.reports) < number:
            assert time.monotonic() < deadline, f"{len(self.reports)} of {number} reports"
            time.sleep(0.02)
        return {report.outcome for report in self.reports}

    def wait_for_pieces(self, number: int, timeout_s: float = 20) -> None:
        """Returns once that many have been stored in all; raises AssertionError when they have not."""
        deadline = time.monotonic() + timeout_s
        while self.stored < number:
            assert time.monotonic() < deadline, f"{self.stored} of {number} pieces"
            time.sleep(0.05)

    def _begin(self, call: str, context: Any) -> None:
        self.calls.append((call, time.monotonic()))
        while call in self.hang and not self.ended.wait(0.05):
            pass


@dataclass
class Service:
    """A running service, and what members are told of it."""

    blocks: Blocks
    kv: KvSharing


@contextlib.contextmanager
def block_service(**kv: Any) -> Iterator[Service]:
    """Served on a socket that namespaces of `vllm_cluster` see; `kv` goes to `KvSharing`."""
    directory = Path(tempfile.mkdtemp(prefix="edgellm-blocks-", dir="/run"))
    blocks = Blocks()
    server = grpc.server(ThreadPoolExecutor(64))
    blocks_pb2_grpc.add_BlocksServicer_to_server(blocks, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{directory}/blocks.sock")
    server.start()
    options = {
        "socket_path": f"{directory}/blocks.sock",
        "scope_secret": secrets.token_hex(32),
        "weights": "a" * 64,
        **kv,
    }
    try:
        yield Service(blocks, KvSharing(**options))
    finally:
        blocks.ended.set()
        server.stop(grace=None).wait(5)
        shutil.rmtree(directory)
