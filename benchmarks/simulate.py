"""A swarm of 500 under churn, in virtual time: `python -m benchmarks.simulate [--seeds 1,2]`, or `make bench BENCH=simulate`.

Prints a table, writes `benchmarks/out/simulate.json`, and exits with 1 when a bar is missed. Needs no root and no engine.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from benchmarks import report
from benchmarks.churn import make_scenario
from benchmarks.report import Figure
from benchmarks.simulated_swarm import Outcome, Results, simulated

OUT = Path(__file__).parent / "out" / "simulate.json"
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Size:
    peers: int = 500
    hours: float = 1.0
    leaving_each_hour: float = 0.3
    requests_each_hour: float = 600.0
    requesters: int = 40


def simulate(seed: int, size: Size) -> Results:
    """One swarm from its seed; equal seeds and sizes give equal results."""
    # Swarms this size have something to tell at every moment.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    scenario = make_scenario(
        seed,
        peers=size.peers,
        hours=size.hours,
        leaving_each_hour=size.leaving_each_hour,
        requests_each_hour=size.requests_each_hour,
        requesters=size.requesters,
    )
    return simulated(scenario)


def figures(results: Sequence[Results], wall_s: float) -> list[Figure]:
    """Of all swarms together."""
    outcomes = [outcome for result in results for outcome in result.outcomes]
    answered = [outcome for outcome in outcomes if not outcome.failure]
    pauses = sorted(pause for outcome in outcomes for pause in outcome.pauses_s)
    hit = [outcome for outcome in outcomes if outcome.pauses_s]
    present = sum(count for result in results for count in result.present_at_hours)
    gone = sum(count for result in results for count in result.gone_within_hours)
    return [
        Figure("requests", len(outcomes), ""),
        Figure("requests completed", 100 * len(answered) / max(1, len(outcomes)), "%", 99.9),
        Figure("tokens", sum(outcome.tokens for outcome in outcomes), ""),
        Figure(
            "tokens lost, doubled or wrong",
            sum(outcome.wrong_tokens for outcome in outcomes),
            "",
            0,
            "at most",
        ),
        Figure("leases left behind", sum(result.leases_left_behind for result in results), "", 0, "at most"),
        Figure("cells left behind", sum(result.cells_left_behind for result in results), "", 0, "at most"),
        Figure("peers gone within an hour", 100 * gone / max(1, present), "%"),
        *(
            Figure(f"departures, {how}", sum(result.left[how] for result in results), "")
            for how in ("drain", "crash", "freeze")
        ),
        Figure("departures of leased hosts", sum(result.left_while_leased for result in results), ""),
        Figure("answers with a pause", len(hit), ""),
        *(
            Figure(f"pause, {name}", pauses[min(len(pauses) - 1, int(share * len(pauses)))], "s")
            for name, share in (
                ("median", 0.5),
                ("90th percentile", 0.9),
                ("99th percentile", 0.99),
                ("longest", 1.0),
            )
            if pauses
        ),
        Figure("first token, median", _median(outcome.first_token_s for outcome in answered), "s"),
        Figure("simulated", sum(result.virtual_s for result in results) / 3600, "h"),
        Figure("wall time", wall_s, "s"),
    ]


def _median(values: Iterable[float]) -> float:
    listed = list(values)
    return statistics.median(listed) if listed else 0.0


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """What kinds of failure there were, the most frequent first, with an example each."""
    kinds = Counter(outcome.failure.partition(":")[0] for outcome in outcomes if outcome.failure)
    examples = {
        outcome.failure.partition(":")[0]: outcome for outcome in reversed(outcomes) if outcome.failure
    }
    return [
        f"{count} × {kind}, for example request {examples[kind].request.index} for {examples[kind].request.model} after "
        f"{examples[kind].tokens} tokens: {examples[kind].failure[:300]}"
        for kind, count in kinds.most_common()
    ]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    default = Size()
    parser.add_argument("--seeds", default="1,2", help="one swarm for each, side by side")
    parser.add_argument("--peers", type=int, default=default.peers)
    parser.add_argument("--hours", type=float, default=default.hours)
    parser.add_argument(
        "--leaving", type=float, default=default.leaving_each_hour, help="share gone each hour"
    )
    parser.add_argument("--requests", type=float, default=default.requests_each_hour, help="each hour")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    size = Size(given.peers, given.hours, given.leaving, given.requests)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    begun = time.monotonic()
    with ProcessPoolExecutor(max_workers=report.this_machine().cores) as pool:
        results = list(pool.map(simulate, seeds, [size] * len(seeds)))
    measured = figures(results, time.monotonic() - begun)
    print(report.table(measured))
    for line in failures([outcome for result in results for outcome in result.outcomes]):
        print(line)
    for seed, result in zip(seeds, results, strict=True):
        print(f"seed {seed}: fingerprint {result.fingerprint}")
    document = report.document(measured, report.this_machine(), report.current_commit(REPOSITORY))
    report.write(
        given.out, {**document, "seeds": seeds, "fingerprints": [result.fingerprint for result in results]}
    )
    return 0 if all(figure.holds is not False for figure in measured) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
