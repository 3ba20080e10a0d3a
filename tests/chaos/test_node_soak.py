"""The short form of `make bench BENCH=soak`: a node among peers that come, ask, misbehave and go keeps nothing of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import trio

from tests.system.soak_peers import Trouble

CYCLES = 60 if os.environ.get("EDGELLM_FULL_TESTS") else 3
CYCLE_S = 6.0
CALM_S = 13.0
"""Longer than a stream that the other side leaves open is kept (`edgellm.p2p.muxer.LINGER_S`), and than a handshake."""
MOST_GROWTH_BYTES = 12 << 20
"""From the first calm on. Short as it is, Python's and libp2p's caches still fill; what is kept of each peer shows above it."""
NODE = Path(__file__).with_name("soak_node.py")


@pytest.mark.timeout(CYCLES * 30 + 60)
async def test_a_node_keeps_nothing_of_peers_that_come_and_go() -> None:
    node = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.soak_node"],
        cwd=NODE.parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert node.stdout is not None
        trouble = Trouble(node.stdout.readline().strip())
        process = psutil.Process(node.pid)
        held = []
        for _ in range(CYCLES):
            await trouble.cycle(CYCLE_S)
            await trio.sleep(CALM_S)
            held.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
        assert node.poll() is None
        assert sum(trouble.done.values()) > 5 * CYCLES
        (first_rss, first_fds, first_threads), (rss, fds, threads) = held[0], held[-1]
        assert rss - first_rss < MOST_GROWTH_BYTES, held
        assert fds <= first_fds + 2, held
        assert threads <= first_threads + 1, held
        print(held, dict(trouble.done))
    finally:
        node.kill()
        node.communicate()
