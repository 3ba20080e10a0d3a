"""The embedded block store: `python -m benchmarks.store [PART...]`, or `make bench BENCH=store`.

Prints a table, writes `benchmarks/out/store.json`, and exits with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from benchmarks import report
from benchmarks.report import Figure
from edgellm.blocks.bitswap import Bitswap
from edgellm.blocks.cid import Cid
from edgellm.blocks.disk import open_disk_store
from edgellm.blocks.exchange import BlockExchange
from edgellm.p2p.addresses import split_peer
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import PeerAddress
from edgellm.p2p.node import NodeConfig, open_node

OUT = Path(__file__).parent / "out" / "store.json"
REPOSITORY = Path(__file__).parents[1]
REPEATS = 7
BLOCKS, BLOCK_BYTES = 64, 1 << 20
SMALL_BLOCKS, SMALL_BYTES = 1000, 1024


async def throughput(directory: Path) -> list[Figure]:
    """Medians of puts of 64 MiB at once, each of new content, and of getting it back one block after the other."""
    puts, gets = [], []
    megabytes = BLOCKS * BLOCK_BYTES / 1e6
    async with open_disk_store(directory, 4 << 30) as store:
        for _ in range(REPEATS):
            blocks = [os.urandom(BLOCK_BYTES) for _ in range(BLOCKS)]
            begun = time.perf_counter()
            cids = await store.put(blocks)
            puts.append(megabytes / (time.perf_counter() - begun))
            begun = time.perf_counter()
            for cid in cids:
                await store.get(cid)
            gets.append(megabytes / (time.perf_counter() - begun))
    _note("put", puts, "MB/s")
    _note("get", gets, "MB/s")
    return [
        Figure("store put, 64 blocks of 1 MiB", statistics.median(puts), "MB/s", 150),
        Figure("store get, 64 blocks of 1 MiB", statistics.median(gets), "MB/s"),
    ]


async def small_gets(directory: Path) -> list[Figure]:
    """A thousand gets at once, of 1 KiB each."""
    times: list[float] = []
    async with open_disk_store(directory, 1 << 30) as store:
        cids = await store.put([os.urandom(SMALL_BYTES) for _ in range(SMALL_BLOCKS)])
        for _ in range(REPEATS):
            got: list[bytes] = []

            async def get(cid: Cid, got: list[bytes] = got) -> None:
                got.append(await store.get(cid))

            begun = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for cid in cids:
                    nursery.start_soon(get, cid)
            times.append(time.perf_counter() - begun)
            if {Cid.of(block) for block in got} != set(cids):
                raise RuntimeError("some gets gave a wrong block")
    _note("1,000 gets at once", times, "s")
    return [Figure("store, 1,000 small gets at once", statistics.median(times), "s")]


async def fetch(directory: Path) -> list[Figure]:
    """64 blocks of 1 MiB, and a thousand of 1 KiB, from another process over loopback, by our own protocol and by Bitswap."""
    sizes = [BLOCK_BYTES] * BLOCKS + [SMALL_BYTES] * SMALL_BLOCKS
    command = [sys.executable, "-m", "benchmarks.store_holder", str(directory), json.dumps(sizes)]
    holder = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    try:
        assert holder.stdout is not None
        said = json.loads(holder.stdout.readline())
        address, peer = split_peer(said["address"])
        cids = [Cid.parse(cid) for cid in said["cids"]]
        big, small = cids[:BLOCKS], cids[BLOCKS:]
        at = PeerAddress(peer, (str(address),))
        config = NodeConfig(Identity.generate(), listen=("/ip4/127.0.0.1/tcp/0",))
        async with open_node(config) as node:
            exchange, bitswap = BlockExchange(node), Bitswap(node, None)

            async def by_exchange(wanted: list[Cid]) -> None:
                await exchange.fetch(wanted, [at], timeout_s=60)

            async def by_bitswap(wanted: list[Cid]) -> None:
                got: dict[Cid, bytes] = {}
                await bitswap.fetch(wanted, at, got.__setitem__)
                if len(got) != len(wanted):
                    raise RuntimeError("some blocks did not come")

            figures = []
            for name, way, bar in (("fetch", by_exchange, 40.0), ("fetch by Bitswap", by_bitswap, 40.0)):
                for what, wanted in (("64 blocks of 1 MiB", big), ("1,000 of 1 KiB", small)):
                    seconds = []
                    for _ in range(REPEATS):
                        begun = time.perf_counter()
                        await way(wanted)
                        seconds.append(time.perf_counter() - begun)
                    if wanted is big:
                        rates = [BLOCKS * BLOCK_BYTES / 1e6 / took for took in seconds]
                        _note(f"{name}, {what}", rates, "MB/s")
                        figures.append(Figure(f"{name}, {what}", statistics.median(rates), "MB/s", bar))
                    else:
                        _note(f"{name}, {what}", seconds, "s")
                        figures.append(Figure(f"{name}, {what}", statistics.median(seconds), "s"))
            return figures
    finally:
        holder.communicate()


PARTS: dict[str, Callable[[Path], Awaitable[list[Figure]]]] = {
    "throughput": throughput,
    "small_gets": small_gets,
    "fetch": fetch,
}


def main() -> int:
    """Exit status: 0 when every bar holds."""
    parser = argparse.ArgumentParser(prog="benchmarks.store", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument(
        "--directory", type=Path, help="on the disk to measure; default: that of temporary files"
    )
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    figures: list[Figure] = []
    for name in chosen.parts or PARTS:
        with tempfile.TemporaryDirectory(dir=chosen.directory) as scratch:
            figures += trio.run(PARTS[name], Path(scratch) / "blocks")
    print(report.table(figures))
    report.write(OUT, report.document(figures, report.this_machine(), report.current_commit(REPOSITORY)))
    return 1 if any(figure.holds is False for figure in figures) else 0


def _note(what: str, values: list[float], unit: str) -> None:
    print(f"{what}, {unit}: " + " ".join(f"{value:.3g}" for value in values), flush=True)


if __name__ == "__main__":
    sys.exit(main())
