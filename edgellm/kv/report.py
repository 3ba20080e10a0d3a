"""What this machine keeps of KV caches, and what that was good for, read from its files."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.kv.figures import COUNTERS
from edgellm.kv.index import HELD, TRACKED, open_index
from edgellm.paths import Paths


@dataclass(frozen=True, slots=True)
class Report:
    """Figures are sums since the files in the cache directory were made."""

    held_records: int
    """Pieces that this host keeps, or kept until their blocks were evicted."""
    known_records: int
    """Pieces that this user's clusters left on hosts."""
    known_holders: int
    figures: dict[str, float]


async def read_report(paths: Paths) -> Report:
    """From the files of this user's host and requesters, which may be running."""
    paths.kv.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open_index(paths.kv / HELD) as held, open_index(paths.kv / TRACKED) as tracked:
        own, known, figures = await held.stat(), await tracked.stat(), await held.figures()
    return Report(
        held_records=own.records,
        known_records=known.records,
        known_holders=known.holders,
        figures={name: figures.get(name, 0.0) for name in COUNTERS},
    )
