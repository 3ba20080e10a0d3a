"""Faults amid answers: `python -m benchmarks.chaos [--seed N] [--faults N] [--only KIND] [--cluster CLUSTER] [--lock FILE]`,
or `make bench BENCH=chaos`.

Hosts of real clusters are killed, frozen, cut off, filled up, starved and ended while they compute, each at a random token of
greedy answers; these must come out as they do undisturbed, in the same streams. Prints a line for each fault, a table, and
writes `benchmarks/out/chaos.json`; exits with 1 when a bar is missed. What came of each fault is kept beside it: the same
command goes on where it was cut short, `--again` begins anew, and `--number N` repeats one fault of a seed. Needs root.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from benchmarks import report
from benchmarks.chaos_cluster import PROMPTS, TOKENS, Broken, Stage
from benchmarks.chaos_log import Log, Outcome, pauses, quantile, table
from benchmarks.chaos_schedule import KINDS, SHARES, Cluster, Fault, schedule
from benchmarks.main import REPOSITORY, locked
from benchmarks.report import Figure
from tests.system.lan import Lan

OUT = Path(__file__).parent / "out" / "chaos.json"
FAULTS = 200
FRESH = 3
"""Bring-ups without a fault, of each kind of cluster."""
MOST_BROKEN = 3
"""Clusters one after the other with which no fault could be tried."""
QUESTION: Cluster = "a question's own"
SPARE: Cluster = "two hosts and a spare"


def run(stage: Stage, faults: Sequence[Fault], log: Log, lock: Path | None, fresh: int) -> None:
    """All of `faults`, cluster by cluster. Raises Broken where it does not get on."""
    for cluster, of_cluster in groupby(faults, key=lambda fault: fault.cluster):
        wanted, broken = list(of_cluster), 0
        while left := log.left(wanted):
            try:
                if cluster == QUESTION:
                    _questions(stage, left, log, lock)
                else:
                    _fresh(stage, cluster, log, lock, fresh)
                    _session(stage, cluster, left, log, lock)
            except Broken as error:
                note(f"{cluster}, once more: {error}")
                stage.heal()
                broken = broken + 1 if len(log.left(wanted)) == len(left) else 0
                if broken == MOST_BROKEN:
                    raise


def _fresh(stage: Stage, cluster: Cluster, log: Log, lock: Path | None, wanted: int) -> None:
    while len(log.fresh_s.get(cluster, ())) < wanted:
        with locked(lock):
            stage.wait_well()
            log.add_fresh(cluster, stage.fresh_s(cluster))
        note(f"a fresh bring-up of {cluster}: {log.fresh_s[cluster][-1]:.1f} s to the first token")


def _questions(stage: Stage, faults: Sequence[Fault], log: Log, lock: Path | None) -> None:
    texts: dict[str, str] = {}
    for fault in faults:
        with locked(lock):
            stage.wait_well()
            prompt = PROMPTS[fault.prompts[0]]
            if prompt not in texts:
                texts[prompt] = stage.text_of(prompt)
            told(stage.disturb_question(fault, texts[prompt]), log)
            stage.heal()


def _session(stage: Stage, cluster: Cluster, faults: Sequence[Fault], log: Log, lock: Path | None) -> None:
    with ExitStack() as stack:
        with locked(lock):
            stage.wait_well()
            session = stack.enter_context(stage.session(cluster))
            for wrong in session.several_at_once():
                note(f"undisturbed, several at once: {wrong}")
        for fault in faults:
            with locked(lock):
                stage.wait_well()
                session.wait_ready()
                told(session.disturb(fault), log)
                stage.heal()


def told(outcome: Outcome, log: Log) -> None:
    """Keeps it, and says it."""
    log.add(outcome)
    pause = "no next token" if outcome.next_token_s is None else f"{outcome.next_token_s:.1f} s"
    where = f"{outcome.kind}{f' ({outcome.side})' if outcome.side else ''} {outcome.victim}"
    result = (
        "came too late" if outcome.is_missed else f"WRONG: {outcome.wrong}" if outcome.wrong else "identical"
    )
    answers = f"{outcome.answers} answer{'' if outcome.answers == 1 else 's'}"
    note(f"#{outcome.number:03} {outcome.cluster}: {where} at {outcome.token}, {answers} {result}, {pause}")


def figures_of(log: Log, faults: Sequence[Fault], *, is_whole_run: bool) -> list[Figure]:
    """Of those `faults` that were tried."""
    numbers = {fault.number for fault in faults}
    tried = [one for one in log.outcomes if one.number in numbers and not one.is_missed]
    right = sum(not outcome.wrong for outcome in tried)
    figures = [
        Figure("faults", len(tried), "", FAULTS if is_whole_run else None),
        Figure("answers as undisturbed", right / len(tried) if tried else 0.0, "", 1.0),
        Figure("faults that made a pause", len(pauses(tried)), ""),
    ]
    for cluster in SHARES:
        times = pauses(outcome for outcome in tried if outcome.cluster == cluster)
        if not times:
            continue
        bar = 3.0 if cluster == SPARE else None
        name = f"next token, {cluster}"
        figures += [
            Figure(f"{name}, median", statistics.median(times), "s", bar, "at most"),
            Figure(f"{name}, p90", quantile(times, 0.9), "s"),
            Figure(f"{name}, most", max(times), "s"),
        ]
        if fresh := log.fresh_s.get(cluster):
            fresh_s = statistics.median(fresh)
            bar = None if cluster == SPARE else 1.1
            ratio = statistics.median(times) / fresh_s
            figures += [
                Figure(f"fresh bring-up, {cluster}", fresh_s, "s"),
                Figure(f"{name}, ratio to a fresh bring-up", ratio, "", bar, "at most"),
            ]
    return figures


def note(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def main() -> int:
    """Exit status: 0 when every bar holds."""
    parser = argparse.ArgumentParser(prog="benchmarks.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=FAULTS, help="how many; default: %(default)s")
    parser.add_argument("--only", action="append", choices=KINDS, default=[], help="may be repeated")
    parser.add_argument(
        "--cluster", action="append", choices=tuple(SHARES), default=[], help="may be repeated"
    )
    parser.add_argument("--number", type=int, help="this one of the seed's faults alone")
    parser.add_argument("--fresh", type=int, default=FRESH, help="bring-ups of each cluster without a fault")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each answer; default: %(default)s")
    parser.add_argument("--again", action="store_true", help="forget what was tried with this seed before")
    parser.add_argument("--lock", type=Path, help="a file to lock (flock) during each fault")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    commit = report.current_commit(REPOSITORY)
    count = options.faults if options.number is None else options.number + 1
    faults = schedule(options.seed, count, len(PROMPTS), only=options.only, clusters=options.cluster)
    if options.number is not None:
        faults = tuple(fault for fault in faults if fault.number == options.number)
    tokens = [] if options.tokens == TOKENS else [str(options.tokens)]
    choice = "-".join(["", *tokens, *options.only, *options.cluster]).replace(" ", "_").replace("'", "")
    path = OUT.with_name(f"chaos-{report.product_state(REPOSITORY)}-{options.seed}{choice}.jsonl")
    if options.again or options.number is not None:
        path.unlink(missing_ok=True)
    log = Log(path)
    left = log.left(faults)
    note(f"seed {options.seed}: {len(left)} of {len(faults)} faults are to be tried; kept in {path}")
    remains = 0
    if left:
        with Lan() as lan:
            with locked(options.lock):
                stage = Stage(lan, note, options.tokens)
            try:
                with stage:
                    run(stage, left, log, options.lock, options.fresh)
                stage.end()
            except Broken as error:
                note(f"given up: {error}")
                remains = 1
            except AssertionError as error:
                note(str(error))
                remains = 1
    is_whole_run = options.faults >= FAULTS and options.number is None
    figures = [
        *figures_of(log, faults, is_whole_run=is_whole_run),
        Figure("runs given up, or that left something behind", remains, "", 0, "at most"),
    ]
    print(f"\n{table(log.outcomes)}\n\n{report.table(figures)}")
    document = report.document(figures, report.this_machine(), commit)
    report.write(OUT, document | {"seed": options.seed, "log": path.name})
    return 0 if all(figure.holds is not False for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
