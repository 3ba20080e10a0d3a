"""Blocks that come before a cell asks for them: those of all pieces that it was told to fetch, one question to each holder.

A cell asks for one piece at a time, and a question for each would cost a round trip and a stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from edgellm.blocks.cid import Cid
from edgellm.errors import EdgeError

MAX_AHEAD_BYTES = 64 << 20
"""On their way or not asked for yet, of one lease. What is over it comes when it is asked for."""

Came = Callable[[Cid, bytes], None]


class Fetch(Protocol):
    """Gets blocks of a holder, each told to `came`; ends with the last, or raises EdgeError."""

    def __call__(self, holder: str, cids: Sequence[Cid], timeout_s: float, came: Came) -> Awaitable[None]: ...


@dataclass
class _Batch:
    """What one holder was asked for."""

    size_bytes: int
    missing: dict[Cid, None]
    here: dict[Cid, bytes] = field(default_factory=dict)
    ended: bool = False
    failure: EdgeError | None = None
    news: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        self.news.set()
        self.news = trio.Event()


class Ahead:
    """Of one lease."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._batches: dict[str, list[_Batch]] = {}
        self._room = MAX_AHEAD_BYTES

    def fits(self, size_bytes: int) -> bool:
        """Whether so many bytes more may be asked for."""
        return size_bytes <= self._room

    def begin(
        self, tasks: trio.Nursery, holder: str, cids: Iterable[Cid], size_bytes: int, timeout_s: float
    ) -> None:
        """Fetches what is not on its way already, and keeps it until it is taken; forgets it all after `timeout_s`."""
        known = {cid for batch in self._batches.get(holder, ()) for cid in (*batch.missing, *batch.here)}
        wanted = [cid for cid in dict.fromkeys(cids) if cid not in known]
        if not wanted or not self.fits(size_bytes):
            return
        batch = _Batch(size_bytes, dict.fromkeys(wanted))
        self._room -= size_bytes
        self._batches.setdefault(holder, []).append(batch)
        tasks.start_soon(self._run, holder, batch, wanted, timeout_s)

    async def _run(self, holder: str, batch: _Batch, cids: Sequence[Cid], timeout_s: float) -> None:
        def came(cid: Cid, block: bytes) -> None:
            if cid in batch.missing:
                del batch.missing[cid]
                batch.here[cid] = block
                batch.tell()

        try:
            with trio.move_on_after(timeout_s):
                try:
                    await self._fetch(holder, cids, timeout_s, came)
                except EdgeError as error:
                    batch.failure = error
                batch.ended = True
                batch.tell()
                while batch.here:
                    await batch.news.wait()
        finally:
            batch.ended = True
            batch.here.clear()
            batch.tell()
            self._room += batch.size_bytes
            self._batches[holder].remove(batch)
            if not self._batches[holder]:
                del self._batches[holder]

    async def take(self, holder: str, cids: Sequence[Cid]) -> list[bytes] | None:
        """The blocks, once they are here; None where some are not on their way. Raises what the fetch of them raised."""
        taken: list[bytes] = []
        for cid in cids:
            batch = next(
                (each for each in self._batches.get(holder, ()) if cid in each.missing or cid in each.here),
                None,
            )
            if batch is None:
                return None
            while cid not in batch.here:
                if batch.failure is not None:
                    raise batch.failure
                if batch.ended:
                    return None
                await batch.news.wait()
            taken.append(batch.here.pop(cid))
            batch.tell()
        return taken
