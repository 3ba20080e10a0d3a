"""What a host keeps of KV pieces, and what cells here get through it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import psutil
import structlog

from edgellm.blocks.bitswap import Bitswap
from edgellm.blocks.disk import open_disk_store
from edgellm.blocks.exchange import BlockExchange, serve_blocks
from edgellm.blocks.kubo import open_kubo_store
from edgellm.blocks.store import BlockStore
from edgellm.errors import EdgeError
from edgellm.hosting.options import default_kv_quota
from edgellm.kv.node import KvNode, open_kv_node
from edgellm.p2p.network import Network
from edgellm.paths import Paths

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_host_kv(
    network: Network, paths: Paths, quota_bytes: int | None, ipfs: str = ""
) -> AsyncIterator[KvNode | None]:
    """A node that keeps blocks, gives them to others, and serves pieces to cells; None where the disk does not let it.

    With a quota of 0 nothing is kept here, and cells still fetch what others keep; with None it follows from the free disk.
    `ipfs` is the RPC of the IPFS daemon that is to keep the blocks, within its own limits. Raises UsageError and NetworkError
    where there is none.
    """
    async with AsyncExitStack() as stack:
        store: BlockStore | None = None
        if ipfs:
            store = await stack.enter_async_context(open_kubo_store(ipfs, paths.kv))
        node = None
        try:
            paths.kv.mkdir(mode=0o700, parents=True, exist_ok=True)
            if quota_bytes is None:
                quota_bytes = default_kv_quota(psutil.disk_usage(str(paths.kv)).free)
            if quota_bytes and store is None:
                store = await stack.enter_async_context(open_disk_store(paths.blocks, quota_bytes))
            if store is not None:
                serve_blocks(network, store)
            fetcher = BlockExchange(network, Bitswap(network, store))
            node = await stack.enter_async_context(open_kv_node(network, paths.kv, store, fetcher))
        except (OSError, EdgeError) as error:
            log.warning("this host shares no KV cache: its store cannot be opened", error=str(error))
        yield node
