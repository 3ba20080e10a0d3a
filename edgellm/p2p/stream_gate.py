"""How many streams others may hold open here: each peer, and all together, of each protocol and of any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from edgellm.p2p.limits import (
    MAX_INBOUND_STREAMS,
    MAX_INBOUND_STREAMS_PER_PEER,
    StreamLimits,
    stream_limits,
)
from edgellm.p2p.pace import Pace


class StreamCounts:
    """Streams of one kind that are open now."""

    def __init__(self, per_peer: int, total: int) -> None:
        self._limits = (per_peer, total)
        self._open: Counter[str] = Counter()
        self._total = 0

    @property
    def total(self) -> int:
        return self._total

    def has_room(self, peer: str) -> bool:
        per_peer, total = self._limits
        return self._total < total and self._open[peer] < per_peer

    @contextmanager
    def one_of(self, peer: str) -> Iterator[None]:
        """Counts a stream of `peer` while the context lasts."""
        self._open[peer] += 1
        self._total += 1
        try:
            yield
        finally:
            self._total -= 1
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]


class ProtocolGate:
    """Says which streams of one protocol are served."""

    def __init__(
        self,
        protocol: str,
        *,
        now: Callable[[], float] = trio.current_time,
        limits: StreamLimits | None = None,
    ) -> None:
        limits = limits or stream_limits(protocol)
        self.counts = StreamCounts(limits.per_peer, limits.total)
        self._pace = Pace(limits.rate)
        self._now = now

    def admits(self, peer: str) -> bool:
        """Whether one more stream of `peer` may be served now; counts against its rate."""
        return self.counts.has_room(peer) and self._pace.admits(peer, self._now())


def all_streams() -> StreamCounts:
    """For inbound streams of any protocol, those that have not said which one included."""
    return StreamCounts(MAX_INBOUND_STREAMS_PER_PEER, MAX_INBOUND_STREAMS)
