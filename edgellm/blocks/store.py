"""The interface of block stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgellm.blocks.cid import Cid

MAX_BLOCK_BYTES = 1 << 20
"""IPFS peers exchange blocks of up to 2 MiB; Kubo's RPC takes 1 MiB without being told otherwise."""


@dataclass(frozen=True, slots=True)
class StoreStat:
    """What a store holds. `pinned_bytes` are part of `used_bytes`."""

    blocks: int
    used_bytes: int
    pinned_bytes: int
    quota_bytes: int
    """0 where the store has none of its own."""


class BlockStore(Protocol):
    """Blocks by the hash of their content. What `get` returns always matches its CID."""

    async def put(self, blocks: Sequence[bytes]) -> tuple[Cid, ...]:
        """Keeps the blocks; returns once the end of this process cannot lose them.

        Raises BlockStoreFull when pinned blocks or the disk leave no room, UsageError for a block over `MAX_BLOCK_BYTES`.
        """

    async def get(self, cid: Cid) -> bytes:
        """The block, which then counts as used now. Raises BlockMissing."""

    async def has(self, cid: Cid) -> bool:
        """Whether `get` would find it here."""

    async def pin(self, cid: Cid) -> None:
        """Keeps it out of `gc` and eviction. Raises BlockMissing."""

    async def unpin(self, cid: Cid) -> None:
        """Undoes `pin`; nothing happens where it was not pinned."""

    async def stat(self) -> StoreStat: ...

    async def gc(self) -> int:
        """Removes all blocks that are not pinned; the bytes that were freed."""
