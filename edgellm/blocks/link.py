"""What is known of the way to another node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """Measured; 0: not known."""

    throughput_bytes_s: float = 0.0
    rtt_s: float = 0.0
