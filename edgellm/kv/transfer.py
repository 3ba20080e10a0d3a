"""One piece on its way: to the cell, or from it into the store. A few blocks at a time, so that memory stays bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.store import MAX_BLOCK_BYTES, BlockStore
from edgellm.errors import EdgeError, NetworkError
from edgellm.kv.records import Record

log = structlog.get_logger(__name__)

MAX_PIECE_BYTES = 64 << 20
PUT_BYTES = 8 << 20
"""Put at once."""
FETCH_BLOCKS = 8
"""Asked of a holder at once."""


class Fetching:
    """A piece that comes by `deadline` (trio's clock), or not.

    `read` gets some of its blocks, within so many seconds; `came` is told how long all of it took, `failed` why it will not
    come.
    """

    def __init__(
        self,
        record: Record,
        holder: str,
        deadline: float,
        read: Callable[[Record, Sequence[Cid], float], Awaitable[list[bytes]]],
        came: Callable[[Record, float], None],
        failed: Callable[[Record, EdgeError], Awaitable[None]],
    ) -> None:
        self.holder = holder
        """Who sends it; empty: this node."""
        self._record = record
        self._deadline = deadline
        self._read = read
        self._came = came
        self._failed = failed
        self._begun = trio.current_time()
        self._cids = deque(record.cids)
        self._blocks: deque[bytes] = deque()

    async def begin(self) -> None:
        """Gets the first blocks, so that another holder can still take over. Raises BlockMissing, NetworkError."""
        await self._more()

    async def next(self) -> list[bytes]:
        """The next blocks, as many as are here; none after the last. Raises BlockMissing, NetworkError."""
        if not self._blocks and self._cids:
            await self._more()
        if self._blocks:
            blocks = list(self._blocks)
            self._blocks.clear()
            return blocks
        self._came(self._record, trio.current_time() - self._begun)
        return []

    async def _more(self) -> None:
        wanted = [self._cids.popleft() for _ in range(min(FETCH_BLOCKS, len(self._cids)))]
        left_s = self._deadline - trio.current_time()
        try:
            with trio.move_on_after(left_s):
                self._blocks.extend(await self._read(self._record, wanted, left_s))
                return
            raise NetworkError(f"peer {self._record.holder} did not send a KV piece in time")
        except EdgeError as error:
            await self._failed(self._record, error)
            raise


class Storing:
    """A piece that a cell gives. To be closed, whatever becomes of it.

    `take` says whether so many more bytes may be kept, `keep` notes a piece of which all is there.
    """

    def __init__(
        self,
        store: BlockStore,
        take: Callable[[int], bool],
        keep: Callable[[tuple[Cid, ...], int], Awaitable[None]],
        closed: Callable[[], None],
        *,
        is_there: bool,
    ) -> None:
        self._store = store
        self._take = take
        self._keep = keep
        self._closed = closed
        self._rest = bytearray()
        self._size_bytes = 0
        self._cids: list[Cid] = []
        self.is_there = is_there
        """It need not come: it stays as it is."""

    async def add(self, data: bytes) -> bool:
        """Takes the next bytes; False where the piece cannot be kept."""
        self._rest += data
        self._size_bytes += len(data)
        if self._size_bytes > MAX_PIECE_BYTES or not self._take(len(data)):
            return False
        whole = len(self._rest) // MAX_BLOCK_BYTES * MAX_BLOCK_BYTES
        return whole < PUT_BYTES or await self._put(whole)

    async def finish(self) -> bool:
        """Whether all of it is kept."""
        if not self._size_bytes or (self._rest and not await self._put(len(self._rest))):
            return False
        await self._keep(tuple(self._cids), self._size_bytes)
        return True

    async def close(self) -> None:
        """To be called once."""
        self._closed()

    async def _put(self, size_bytes: int) -> bool:
        starts = range(0, size_bytes, MAX_BLOCK_BYTES)
        blocks = [bytes(self._rest[start : min(start + MAX_BLOCK_BYTES, size_bytes)]) for start in starts]
        del self._rest[:size_bytes]
        try:
            self._cids += await self._store.put(blocks)
        except (EdgeError, OSError) as error:
            log.info("a KV piece is not kept", error=str(error))
            return False
        return True
