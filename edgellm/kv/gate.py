"""Fetch or recompute: how much of a run of chunks is worth fetching.

With n chunks of t tokens, b(h, n) bytes of them at holder h, its throughput B(h) and round trip R(h), and p tokens a second of
prefill on this cluster:

    fetch(n)   = max over h of R(h) + b(h, n) / B(h)        holders send at the same time
    compute(n) = n t / p

The n with the largest saving is fetched, where it saves at least a fifth of compute(n): estimates are off, and a request must
not become slower for them. Attention makes late chunks dearer than n t / p says, so savings are underestimated.

A holder that nothing is known of is tried with all of them, and given up after a twentieth of what the run takes to compute:
that much a new link may cost, once. What has come by then is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgellm.blocks.link import Link as Link

LEAST_SAVING = 0.2
PROBE_SHARE = 0.05
ASSUMED_PREFILL_TOK_S = 2000.0
"""Where nothing is known: rather fast, so that only good links are used."""
_PATIENCE = 2.0
_LEAST_TIMEOUT_S = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """Fetch the first `chunks`, predicted to take `fetch_s` instead of `compute_s`; whatever is not there after
    `timeout_s` is to be computed.
    """

    chunks: int
    fetch_s: float = 0.0
    compute_s: float = 0.0
    timeout_s: float = 0.0


def worth_fetching(
    chunks: Sequence[Mapping[str, int]],
    links: Mapping[str, Link],
    *,
    chunk_tokens: int,
    prefill_tok_s: float,
) -> Verdict:
    """How many of the first chunks to fetch. `chunks`: for each its bytes at each holder; what is here costs nothing and is not
    among them. `prefill_tok_s` 0: not known.
    """
    chunk_s = chunk_tokens / (prefill_tok_s or ASSUMED_PREFILL_TOK_S)
    at: dict[str, int] = {}
    best = Verdict(0)
    for count, chunk in enumerate(chunks, 1):
        for holder, size_bytes in chunk.items():
            at[holder] = at.get(holder, 0) + size_bytes
        unknown = [holder for holder in at if links.get(holder, Link()).throughput_bytes_s <= 0]
        compute_s = count * chunk_s
        if unknown:
            if best.chunks == 0 and not any(chunks[: count - 1]):
                whole_s = len(chunks) * chunk_s
                probe_s = PROBE_SHARE * whole_s
                best = Verdict(len(chunks), probe_s, whole_s, max(probe_s, _LEAST_TIMEOUT_S))
            break
        fetch_s = max((_seconds(links[holder], size) for holder, size in at.items()), default=0.0)
        saving = compute_s - fetch_s
        if saving >= LEAST_SAVING * compute_s and saving > best.compute_s - best.fetch_s:
            best = Verdict(count, fetch_s, compute_s, max(_PATIENCE * fetch_s, _LEAST_TIMEOUT_S))
    return best


def _seconds(link: Link, size_bytes: int) -> float:
    return link.rtt_s + size_bytes / link.throughput_bytes_s
