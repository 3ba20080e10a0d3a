"""What sharing KV did for this machine, in numbers that outlive a process, as JSON and in Prometheus' text format.

https://prometheus.io/docs/instrumenting/exposition_formats/ : node_exporter's textfile collector takes it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

COUNTERS: Mapping[str, str] = {
    "found_chunks": "Chunks that cells were told to fetch.",
    "missed_chunks": "Chunks that nobody had.",
    "declined_chunks": "Chunks that were there, but sooner computed than fetched.",
    "used_pieces": "Pieces that cells fetched, opened and used.",
    "used_tokens": "Prompt tokens of those pieces, of each rank.",
    "seconds_saved": "Predicted seconds of computing them.",
    "seconds_fetching": "Seconds that fetching took, of all pieces.",
    "bytes_in": "Bytes of pieces from other peers.",
    "bytes_local": "Bytes of pieces from this machine's own store.",
    "bytes_stored": "Bytes of pieces that cells gave to keep.",
    "refused_stores": "Pieces that were not kept: no room, over a lease's share, or no quota.",
    "verify_failures": "Pieces that were not what their record or their key says.",
    "late": "Questions of cells that were not answered in time.",
    "fetch_failures": "Pieces that were found and could not be fetched.",
    "announced": "Records that a tracker took.",
    "lost_announcements": "Records that no tracker heard of; only a miss later on.",
}
"""All counters and what they count; every one only grows."""


class Figures:
    """Counts in this process until `take` hands the sums over."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}

    def add(self, name: str, amount: float = 1.0) -> None:
        assert name in COUNTERS, name
        self._sums[name] = self._sums.get(name, 0.0) + amount

    def take(self) -> dict[str, float]:
        """What was counted since the last call."""
        taken, self._sums = self._sums, {}
        return taken


def prometheus(figures: Mapping[str, float]) -> str:
    """The figures in Prometheus' text format, one counter each, those at zero too."""
    lines = []
    for name, meaning in COUNTERS.items():
        metric = f"edgellm_kv_{name}_total"
        lines += [
            f"# HELP {metric} {meaning}",
            f"# TYPE {metric} counter",
            f"{metric} {figures.get(name, 0):g}",
        ]
    return "\n".join(lines) + "\n"
