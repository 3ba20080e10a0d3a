"""From LMCache's chunks to pieces and back: names, seals, shapes, and the checks that make anything wrong a miss."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from edgellm.kv.names import chunk_name
from edgellm.kv.region import Region, assemble, cover
from edgellm.kv.scope import ScopeKeys
from edgellm.kv.seal import SEAL_BYTES, NotAuthentic, open_sealed, seal
from edgellm_vllm.kv.node import FoundPiece, NodeBlocks
from edgellm_vllm.kv.profile import EXPONENTS, RankProfile, read_profile
from edgellm_vllm.kv.settings import KvSettings
from edgellm_vllm.kv.squeeze import possible_bytes, squeeze, unsqueeze
from edgellm_vllm.kv.tasks import Task

log = logging.getLogger(__name__)

_REMEMBERED = 65536
_REPORTS_WAITING = 1024
_REPORT_AFTER_S = 0.5


class Chunk(NamedTuple):
    """LMCache's name of a chunk: a rolling hash over the prompt's tokens, and the request's salt."""

    hash: bytes
    salt: str


@dataclass(frozen=True)
class Source:
    """A piece that came, for the report of what became of it."""

    name: bytes
    region: Region
    holder: str
    came_at: float
    """Of `time.monotonic`."""


class Pieces:
    """Those of all ranks on this server. Ranks become known when they have said what they are."""

    def __init__(self, settings: KvSettings) -> None:
        self._settings = settings
        self.node = NodeBlocks(settings.sharing.socket_path)
        self.keys = ScopeKeys.derive(bytes.fromhex(settings.sharing.scope_secret))
        self._lock = threading.Lock()
        self._ranks: dict[int, RankPieces] = {}
        self._reports: queue.Queue[tuple[Source, str, int]] = queue.Queue(_REPORTS_WAITING)
        threading.Thread(target=self._report_all, name="kv-reports", daemon=True).start()

    def of_rank(self, local_ranks: int, local_rank: int) -> RankPieces | None:
        """None for a rank that has not said what it holds, or shares nothing: all of its pieces are misses."""
        with self._lock:
            known = self._ranks.get(local_rank)
            if known is None:
                profile = read_profile(self._settings.profiles, local_rank)
                if profile is None:
                    return None
                known = self._ranks[local_rank] = RankPieces(self, profile, self._settings.sharing.weights)
        return known if known.profile.local_ranks == local_ranks else None

    def report(self, source: Source, outcome: str, tokens: int) -> None:
        """Tells the node, later; forgotten where the node takes too few."""
        try:
            self._reports.put_nowait((source, outcome, tokens))
        except queue.Full:
            log.warning("the node takes no reports")

    def close(self) -> None:
        """Ends all calls to the node."""
        self.node.close()

    def _report_all(self) -> None:
        while True:
            source, outcome, tokens = self._reports.get()
            if outcome == "used":
                # After the answer's first token rather than in its way.
                time.sleep(max(0.0, source.came_at + _REPORT_AFTER_S - time.monotonic()))
            self.node.report(source.name, source.region, source.holder, outcome, tokens)


class RankPieces:
    """The pieces of one rank."""

    def __init__(self, pieces: Pieces, profile: RankProfile, weights: str) -> None:
        self.profile = profile
        self._pieces = pieces
        self._namespace = profile.namespace(weights).digest()
        self._chunk_tokens = profile.chunk_tokens
        self._lock = threading.Lock()
        self._found: OrderedDict[bytes, tuple[FoundPiece, ...]] = OrderedDict()
        self._there: OrderedDict[bytes, None] = OrderedDict()

    def find(self, chunks: Sequence[Chunk], timeout_s: float) -> int:
        """How many of the first chunks are there and worth fetching."""
        names = [self._name(chunk) for chunk in chunks]
        found = self._pieces.node.find(names, self.profile.region, self._chunk_tokens, timeout_s)
        with self._lock:
            for name, pieces in zip(names, found, strict=False):
                _remember(self._found, name, pieces)
        return len(found)

    def load(
        self, chunk: Chunk, shape: tuple[int, ...], size_bytes: int, task: Task[object]
    ) -> tuple[bytes, list[Source]] | None:
        """The values of a chunk in this rank's shape, and where they came from; None for a miss."""
        region = self.profile.region
        if size_bytes != self._bytes_of(region):
            log.warning("LMCache wants %d bytes where %s has %d", size_bytes, region, self._bytes_of(region))
            return None
        name = self._name(chunk)
        with self._lock:
            pieces = self._found.get(name, ())
        use = cover(region, [piece.region for piece in pieces])
        if use is None or (not self._can_be_cut(shape) and use != (region,)):
            return None
        by_region = {piece.region: piece for piece in pieces}
        came: list[tuple[Region, bytes]] = []
        sources = []
        for wanted in use:
            opened = self._open(name, by_region[wanted], task.left_s)
            if opened is None:
                return None
            content, source = opened
            came.append((wanted, content))
            sources.append(source)
        whole = assemble(region, came, self._chunk_tokens, self.profile.bytes_per_head_token)
        with self._lock:
            _remember(self._there, name, None)
        return whole, sources

    def report(self, sources: Sequence[Source], outcome: str) -> None:
        """What became of loaded pieces."""
        for source in sources:
            self._pieces.report(source, outcome, self._chunk_tokens)

    def is_to_be_stored(self, chunk: Chunk, shape: tuple[int, ...], size_bytes: int) -> bool:
        """Whether it is a piece of this rank's region at all, and the node does not have it from here or gave it."""
        if size_bytes != self._bytes_of(self.profile.region):
            log.warning("LMCache has %d bytes of shape %s for %s", size_bytes, shape, self.profile.region)
            return False
        with self._lock:
            return self._name(chunk) not in self._there

    def store(self, chunk: Chunk, content: bytes) -> int:
        """Seals and stores; how many bytes the node keeps."""
        region = self.profile.region
        if not is_finite(content, self.profile.dtype):
            log.warning("a chunk with values that are not finite is not shared")
            return 0
        name = self._name(chunk)
        sealed = seal(self._pieces.keys, name, region, squeeze(content, self.profile.dtype))
        if not self._pieces.node.store(name, region, sealed):
            return 0
        with self._lock:
            _remember(self._there, name, None)
        return len(sealed)

    def _open(self, name: bytes, piece: FoundPiece, timeout_s: float) -> tuple[bytes, Source] | None:
        size_bytes = self._bytes_of(piece.region)
        possible = possible_bytes(size_bytes, self.profile.dtype)
        fetched = self._pieces.node.fetch(name, piece, max(possible) + SEAL_BYTES, timeout_s)
        if fetched is None:
            return None
        sealed, holder = fetched
        source = Source(name, piece.region, holder, time.monotonic())
        if len(sealed) - SEAL_BYTES not in possible:
            self._refuse(source, "wrong size")
            return None
        try:
            content = unsqueeze(
                open_sealed(self._pieces.keys, name, piece.region, memoryview(sealed)), size_bytes
            )
        except NotAuthentic:
            self._refuse(source, "not authentic")
            return None
        except ValueError:
            self._refuse(source, "wrong size")
            return None
        if not is_finite(content, self.profile.dtype):
            self._refuse(source, "not finite")
            return None
        return content, source

    def _refuse(self, source: Source, outcome: str) -> None:
        log.warning("a piece from %s was %s", source.holder or "the node itself", outcome)
        self._pieces.report(source, outcome, 0)

    def _name(self, chunk: Chunk) -> bytes:
        return chunk_name(self._pieces.keys, self._namespace, chunk.hash, chunk.salt)

    def _bytes_of(self, region: Region) -> int:
        return region.layers * self._chunk_tokens * region.heads * self.profile.bytes_per_head_token

    def _can_be_cut(self, shape: tuple[int, ...]) -> bool:
        """Whether the values lie as layer, token, head; with keys apart from values they do not."""
        region = self.profile.region
        return shape[:2] == (region.layers, self._chunk_tokens) and prod(shape[2:]) % region.heads == 0


def is_finite(content: bytes, dtype: str) -> bool:
    """Whether all values of `dtype`, one of `EXPONENTS`, in `content` are finite."""
    import numpy as np

    mask = EXPONENTS[dtype]
    if mask < 1 << 16:
        return bool(((np.frombuffer(content, np.uint16) & mask) != mask).all())
    return bool(((np.frombuffer(content, np.uint32) & mask) != mask).all())


def _remember(memory: OrderedDict, name: bytes, value: object) -> None:  # type: ignore[type-arg]
    memory[name] = value
    memory.move_to_end(name)
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)
