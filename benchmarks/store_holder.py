"""A node that gives blocks, in a process of its own: `python -m benchmarks.store_holder DIRECTORY SIZES`, sizes as a JSON list.

Prints one JSON line {"address", "cids"}, then gives its blocks until its standard input is closed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import trio

from edgellm.blocks.bitswap import Bitswap
from edgellm.blocks.disk import open_disk_store
from edgellm.blocks.exchange import serve_blocks
from edgellm.p2p.identity import Identity
from edgellm.p2p.node import NodeConfig, open_node


async def serve(directory: Path, sizes: list[int]) -> None:
    """Until the end of standard input."""
    config = NodeConfig(Identity.generate(), listen=("/ip4/127.0.0.1/tcp/0",))
    async with open_disk_store(directory, 4 << 30) as store, open_node(config) as node:
        cids = [cid for size in sizes for cid in await store.put([os.urandom(size)])]
        serve_blocks(node, store)
        Bitswap(node, store)
        print(json.dumps({"address": node.addresses[0], "cids": [str(cid) for cid in cids]}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    trio.run(serve, Path(sys.argv[1]), json.loads(sys.argv[2]))
