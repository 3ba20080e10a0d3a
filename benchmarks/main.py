"""The figures of `docs/benchmarks.md`: `python -m benchmarks.main [PART...] [--lock FILE]`, or `make bench BENCH=main`.

Prints a table, writes `benchmarks/out/main.json`, and exits with 1 when a bar is missed. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.first_token import measure_first_token, phase_table
from benchmarks.idle import measure_idle
from benchmarks.overlay import Way, measure_overlay
from benchmarks.report import Figure
from benchmarks.session import SEQUENCES, SMALL, Load, measure_session
from tests.system.lan import Lan
from tests.system.swarm import Host, Swarm

OUT = Path(__file__).parent / "out" / "main.json"
REPOSITORY = Path(__file__).parents[1]
REPEATS = 5
SESSION_REPEATS = 9


@dataclass(frozen=True, slots=True)
class Stage:
    """What parts measure on: a swarm of a meeting point and two hosts, with a requester."""

    swarm: Swarm
    hosts: tuple[Host, Host]
    large: Path
    """A model that both hosts lend besides the small one."""


def idle(stage: Stage) -> list[Figure]:
    """The dearer one of the hosts."""
    costs = measure_idle([host.process for host in stage.hosts])
    return [
        Figure("idle host RSS", max(cost.rss_bytes for cost in costs) / 1e6, "MB", 150, "at most"),
        Figure("idle host CPU", 100 * max(cost.cpu_share for cost in costs), "% of a core", 1, "at most"),
    ]


def session(stage: Stage) -> list[Figure]:
    """Decode speed with the small model, of one request alone and of several, and with the large one."""
    large = Load(stage.large, context=512, tokens=64)
    return [
        *_session_figures(stage, "small model", SMALL, (1, SEQUENCES), SESSION_REPEATS),
        *_session_figures(stage, "large model", large, (1,), REPEATS),
    ]


def _session_figures(
    stage: Stage, what: str, load: Load, at_once: tuple[int, ...], repeats: int
) -> list[Figure]:
    one, other = stage.hosts
    figures = []
    for count, speed in measure_session(
        stage.swarm, (one.machine, other.machine), load, at_once, repeats
    ).items():
        name = f"{what}, {count} at once"
        for who, each in (("session", speed.session_each), ("by hand", speed.by_hand_each)):
            _note(f"{who}, {name}", "tok/s: " + " ".join(f"{value:.3g}" for value in each))
        figures += [
            Figure(f"session speed, {name}", speed.session_tok_s, "tok/s"),
            Figure(f"session speed, {name}, by hand", speed.by_hand_tok_s, "tok/s"),
            # A session of one person is asked one thing at a time; several at once are for information.
            Figure(f"session speed, {name}, ratio", speed.ratio, "", 0.95 if count == 1 else None),
        ]
    return figures


def first_token(stage: Stage) -> list[Figure]:
    """Time to the first token of a new cluster."""
    one, other = stage.hosts
    found = measure_first_token(stage.swarm, (one.machine, other.machine), REPEATS)
    for name, side in (("ask", found.ask), ("by hand", found.by_hand)):
        _note(name, "s: " + " ".join(f"{bring_up.first_token_s:.1f}" for bring_up in side))
        print(phase_table(side), flush=True)
    return [
        Figure("first token", found.ask_s, "s"),
        Figure("first token by hand", found.by_hand_s, "s"),
        Figure("first token ratio", found.ratio, "", 1.25, "at most"),
    ]


def overlay(stage: Stage) -> list[Figure]:
    """Between two cells, each in a network namespace of its own."""
    direct = measure_overlay(REPEATS)
    figures = [
        Figure("plain TCP throughput", direct.plain.sent_mb_s, "MB/s"),
        Figure("plain TCP round trip", direct.plain.rtt_ms, "ms"),
        Figure("overlay throughput", direct.overlay.sent_mb_s, "MB/s"),
        Figure("overlay throughput ratio", direct.ratio, "", 0.3),
        Figure("overlay added round trip", direct.added_rtt_ms, "ms", 1, "at most"),
    ]
    ways: tuple[Way, ...] = ("streams", "relayed")
    for way in ways:
        found = measure_overlay(REPEATS, way)
        figures += [
            Figure(f"overlay throughput, {way}", found.overlay.sent_mb_s, "MB/s"),
            Figure(f"overlay added round trip, {way}", found.added_rtt_ms, "ms"),
        ]
    return figures


PARTS: dict[str, Callable[[Stage], list[Figure]]] = {
    "idle": idle,
    "session": session,
    "first_token": first_token,
    "overlay": overlay,
}


def main() -> int:
    """Exit status: 0 when every bar holds."""
    parser = argparse.ArgumentParser(prog="benchmarks.main", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--lock", type=Path, help="a file to lock (flock) during each part")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    # Ended by whoever started it, it still takes everything down.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # What runs now, whatever is committed meanwhile.
    commit = report.current_commit(REPOSITORY)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="edgellm-bench-", dir="/var/tmp") as directory, Lan() as lan:
        large = Path(directory) / "large"
        with locked(options.lock):
            subprocess.run([sys.executable, "-m", "benchmarks.large_model", str(large)], check=True)
            swarm = Swarm(lan)
            one, other = (
                swarm.start_host(swarm.machine(name), "--model", str(large)).wait_ready()
                for name in ("alice", "bob")
            )
        stage = Stage(swarm, (one, other), large)
        for name in options.parts or PARTS:
            with locked(options.lock):
                began = time.monotonic()
                found = PARTS[name](stage)
            _note(name, f"measured in {time.monotonic() - began:.0f} s")
            print(report.table(found), flush=True)
            figures += found
        lan.end_all()
    print(f"\n{report.table(figures)}")
    report.write(OUT, report.document(figures, report.this_machine(), commit))
    return 0 if all(figure.holds is not False for figure in figures) else 1


@contextlib.contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Nobody else who locks that file runs meanwhile."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _note(who: str, what: str) -> None:
    print(f"{who}: {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
