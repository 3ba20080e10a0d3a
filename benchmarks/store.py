"""The embedded block store: `python -m benchmarks.store [PART...]`, or `make bench BENCH=store`.

Prints a table, writes `benchmarks/out/store.json`, and exits with 1 when a bar is missed. A new part is a function in `PARTS`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from benchmarks import report
from benchmarks.report import Figure
from edgellm.blocks.cid import Cid
from edgellm.blocks.disk import open_disk_store

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


PARTS: dict[str, Callable[[Path], Awaitable[list[Figure]]]] = {
    "throughput": throughput,
    "small_gets": small_gets,
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
