"""The block store that a user's own IPFS daemon keeps (`--ipfs /ip4/127.0.0.1/tcp/5001`): Kubo, or any with its RPC."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.kubo_ledger import Ledger
from edgellm.blocks.kubo_rpc import DaemonRpc, OversizedAnswer, Refused, is_local
from edgellm.blocks.store import MAX_BLOCK_BYTES, StoreStat
from edgellm.errors import BlockMissing, BlockStoreFull, ProtocolViolation, UsageError

log = structlog.get_logger(__name__)

T = TypeVar("T")

_THREADS = 8
"""Connections at once; urllib3's pool keeps ten."""
_PUTS_AT_ONCE = 4
_REMOVED_AT_ONCE = 64
"""Their CIDs travel in the URL: 4 KB of the 16 KB that Node takes."""

# `cid-codec` is Kubo's since 0.13, and wins nothing over an equal `format`; js-ipfs reads `format` and `version`.
_PUT = {"cid-codec": "raw", "format": "raw", "mhtype": "sha2-256", "version": "1", "pin": "false"}

# Texts of Kubo ("ipld: could not find", "context deadline exceeded") and js-ipfs ("not found", "request timed out").
_NOT_THERE = ("not found", "could not find")
_NOT_FOUND_IN_TIME = ("timed out", "deadline exceeded")
_NO_ROOM = ("no space left", "enospc", "disk quota", "edquot")


@dataclass(frozen=True, slots=True)
class KuboLimits:
    lookup_s: float = 2.0
    """How long the daemon may look for a block. Kubo, told to stay offline, needs no such time; js-ipfs asks its peers."""
    call_s: float = 10.0
    """How long any call may take in all, waiting for its turn included."""


@dataclass(frozen=True, slots=True)
class RepoStat:
    """The daemon's whole repository, which is more than our blocks."""

    version: str
    objects: int
    used_bytes: int
    limit_bytes: int
    """StorageMax of its config: where `ipfs daemon --enable-gc` begins to remove what is not pinned. 0: unknown."""


@asynccontextmanager
async def open_kubo_store(
    address: str, directory: Path, *, limits: KuboLimits | None = None, allow_remote: bool = False
) -> AsyncIterator[KuboStore]:
    """The daemon's store. In `directory` is the list of the blocks that are ours, one for each address.

    The RPC gives whoever reaches it the whole daemon, without a password and in the clear, so that an address other than a
    Unix socket or loopback is refused unless `allow_remote` (a daemon in the next container). Raises UsageError, and
    NetworkError where no daemon answers.
    """
    rpc = DaemonRpc(address)
    try:
        if not allow_remote and not is_local(address):
            raise UsageError(
                f"{address} is not on this machine, and an IPFS daemon's RPC has neither encryption nor passwords",
                remedy="run a daemon here, or bring its port here through SSH (ssh -L 5001:127.0.0.1:5001)",
            )
        ledger = Ledger(directory / f"kubo-{hashlib.sha256(address.encode()).hexdigest()[:16]}.list")
        try:
            store = KuboStore(rpc, ledger, limits or KuboLimits())
            log.info("ipfs_daemon", address=address, version=await store.version())
            yield store
        finally:
            ledger.close()
    finally:
        rpc.close()


class KuboStore:
    """Made by `open_kubo_store` (`edgellm.blocks.store.BlockStore`).

    Our pins are the daemon's pins. What is not pinned its own garbage collection may remove at any time, and there is neither
    a quota nor an order of use: both are for the daemon's owner to set. Every method but `stat` raises NetworkError when the
    daemon is gone or does not answer within `KuboLimits.call_s`.
    """

    def __init__(self, rpc: DaemonRpc, ledger: Ledger, limits: KuboLimits) -> None:
        self._rpc, self._ledger, self._limits = rpc, ledger, limits
        self._threads = trio.CapacityLimiter(_THREADS)
        # Told to stop looking, the daemon does not go on asking its peers after we gave up.
        self._lookup = {"offline": "true", "timeout": f"{round(limits.lookup_s * 1000)}ms"}

    async def put(self, blocks: Sequence[bytes]) -> tuple[Cid, ...]:
        """As in `BlockStore`. Kubo writes through to its disk unless its config says otherwise (`Datastore.Spec`, `sync`).

        Raises ProtocolViolation where the daemon gives a block another name than IPFS does.
        """
        if too_large := [len(block) for block in blocks if len(block) > MAX_BLOCK_BYTES]:
            raise UsageError(f"a block of {too_large[0]} bytes; it has {MAX_BLOCK_BYTES} at most")
        cids = tuple(Cid.of(block) for block in blocks)
        turns = trio.Semaphore(_PUTS_AT_ONCE)
        failures: list[Exception] = []

        async def put(cid: Cid, block: bytes) -> None:
            async with turns:
                if failures:
                    return
                try:
                    await self._in_thread(partial(self._put, cid, block))
                except Exception as error:  # noqa: BLE001 - raised below, by itself instead of in a group
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for cid, block in zip(cids, blocks, strict=True):
                nursery.start_soon(put, cid, block)
        if failures:
            raise failures[0]
        return cids

    async def get(self, cid: Cid) -> bytes:
        """As in `BlockStore`, from the daemon's own disk. js-ipfs, which cannot be told so, asks its peers for `lookup_s`."""

        def get(deadline: float) -> bytes:
            try:
                return self._rpc.call(
                    "block/get", [str(cid)], self._lookup, deadline=deadline, limit_bytes=MAX_BLOCK_BYTES
                )
            except OversizedAnswer as error:
                raise BlockMissing(f"what the IPFS daemon has as {cid} is too large for it") from error
            except Refused as refused:
                raise self._missing(cid, refused) from refused

        block = await self._in_thread(get)
        if not cid.matches(block):
            raise BlockMissing(
                f"what the IPFS daemon at {self._rpc.address} has as {cid} is not that block",
                remedy="its repository is damaged: see `ipfs repo verify`",
            )
        return block

    async def has(self, cid: Cid) -> bool:
        """As in `BlockStore`."""
        try:
            await self._in_thread(partial(self._stat, cid))
        except BlockMissing:
            return False
        return True

    async def pin(self, cid: Cid) -> None:
        """As in `BlockStore`. Where the daemon's owner has pinned it already, that pin is theirs, and `unpin` leaves it."""

        def pin(deadline: float) -> None:
            self._stat(cid, deadline)
            if self._ledger.pinned(cid) is None:
                # Before the daemon pins, so that a crash between the two cannot make our pin look like its owner's.
                self._ledger.pin(cid, ours=not self._has_pin(cid, deadline))
            try:
                self._rpc.objects("pin/add", [str(cid)], self._lookup, deadline=deadline)
            except Refused as refused:
                raise self._missing(cid, refused) from refused

        await self._in_thread(pin)

    async def unpin(self, cid: Cid) -> None:
        """As in `BlockStore`."""

        def unpin(deadline: float) -> None:
            if self._ledger.pinned(cid):
                try:
                    self._rpc.objects("pin/rm", [str(cid)], {}, deadline=deadline)
                except Refused as refused:
                    if "not pinned" not in refused.reason.lower():
                        raise
            self._ledger.unpin(cid)

        await self._in_thread(unpin)

    async def stat(self) -> StoreStat:
        """As in `BlockStore`: the blocks that we put, less those found gone. `repo` tells of the daemon's whole repository."""
        blocks, used_bytes, pinned_bytes = self._ledger.totals()
        return StoreStat(blocks, used_bytes, pinned_bytes, quota_bytes=0)

    async def gc(self) -> int:
        """As in `BlockStore`, of our own blocks alone.

        Not the daemon's `repo/gc`: that removes whatever its owner has not pinned, which nobody asked for. A block that its
        owner pinned since stays too. One that the daemon had before we put the same bytes is ours from then on.
        """
        freed_bytes = 0
        unpinned = list(self._ledger.unpinned().items())
        for start in range(0, len(unpinned), _REMOVED_AT_ONCE):
            some = dict(unpinned[start : start + _REMOVED_AT_ONCE])
            freed_bytes += await self._in_thread(partial(self._remove, some))
        return freed_bytes

    async def version(self) -> str:
        """The daemon's own version."""

        def version(deadline: float) -> str:
            return str(self._rpc.objects("version", [], {}, deadline=deadline)[0].get("Version"))

        return await self._in_thread(version)

    async def repo(self) -> RepoStat:
        """What the daemon says of its repository."""

        def repo(deadline: float) -> RepoStat:
            (stat, *_) = self._rpc.objects("repo/stat", [], {}, deadline=deadline)
            (version, *_) = self._rpc.objects("version", [], {}, deadline=deadline)
            counts = [str(stat.get(key)) for key in ("NumObjects", "RepoSize", "StorageMax")]
            objects, used, limit = (int(count) if count.isdecimal() else 0 for count in counts)
            return RepoStat(str(version.get("Version")), objects, used, limit)

        return await self._in_thread(repo)

    async def _in_thread(self, call: Callable[[float], T]) -> T:
        deadline = time.monotonic() + self._limits.call_s
        with trio.move_on_after(self._limits.call_s):
            return await trio.to_thread.run_sync(
                call, deadline, abandon_on_cancel=True, limiter=self._threads
            )
        raise self._rpc.late()

    def _put(self, cid: Cid, block: bytes, deadline: float) -> None:
        try:
            (answer, *_) = self._rpc.objects("block/put", [], _PUT, deadline=deadline, body=block)
        except Refused as refused:
            if any(text in refused.reason.lower() for text in _NO_ROOM):
                raise BlockStoreFull(
                    f"the IPFS daemon at {self._rpc.address} has no room: {refused.reason}",
                    remedy="free some space on its disk (`ipfs repo gc`)",
                ) from refused
            raise
        if answer.get("Key") != str(cid):
            raise ProtocolViolation(
                f"the IPFS daemon at {self._rpc.address} named a block {str(answer.get('Key'))[:80]}; it is {cid}",
                remedy="use Kubo 0.13 or later, or leave out --ipfs",
            )
        self._ledger.put(cid, len(block))

    def _stat(self, cid: Cid, deadline: float) -> None:
        try:
            self._rpc.objects("block/stat", [str(cid)], self._lookup, deadline=deadline)
        except Refused as refused:
            raise self._missing(cid, refused) from refused

    def _has_pin(self, cid: Cid, deadline: float) -> bool:
        try:
            self._rpc.objects("pin/ls", [str(cid)], {"type": "recursive"}, deadline=deadline)
        except Refused as refused:
            if "not pinned" not in refused.reason.lower():
                raise
            return False
        return True

    def _missing(self, cid: Cid, refused: Refused) -> BlockMissing | Refused:
        reason = refused.reason.lower()
        if any(text in reason for text in _NOT_THERE):
            # What the daemon's own garbage collection took is not counted any longer.
            self._ledger.gone([cid])
        elif not any(text in reason for text in _NOT_FOUND_IN_TIME):
            return refused
        return BlockMissing(f"the IPFS daemon at {self._rpc.address} does not have block {cid}")

    def _remove(self, sizes: dict[Cid, int], deadline: float) -> int:
        # js-ipfs answers in base58 unless told otherwise.
        options = {"cid-base": "base32"}
        answers = self._rpc.objects("block/rm", [str(cid) for cid in sizes], options, deadline=deadline)
        errors = {str(answer.get("Hash")): str(answer.get("Error") or "") for answer in answers}
        removed = [cid for cid in sizes if errors.get(str(cid)) == ""]
        not_there = [
            cid for cid in sizes if any(text in errors.get(str(cid), "").lower() for text in _NOT_THERE)
        ]
        self._ledger.gone([*removed, *not_there])
        return sum(sizes[cid] for cid in removed)
