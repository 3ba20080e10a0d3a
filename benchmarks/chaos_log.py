"""What came of faults, a line each, in a file that a run that was cut short goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.chaos_schedule import Fault


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fault."""

    number: int
    kind: str
    cluster: str
    side: str
    victim: str
    token: int
    """How many tokens of the first answer had come (of a question with a cluster of its own: characters)."""
    wrong: str
    """What is wrong with the answers; "" where all are as undisturbed ones."""
    next_token_s: float | None
    """From the fault to the first token after the pause that it made."""
    answers: int
    recoveries: int = 0
    """Clusters that the session formed anew for it."""
    is_missed: bool = False
    """Whether the answers were complete before the fault."""

    @classmethod
    def of(
        cls,
        fault: Fault,
        victim: str,
        token: int,
        wrong: str,
        next_token_s: float | None,
        answers: int,
        *,
        recoveries: int = 0,
        is_missed: bool = False,
    ) -> Outcome:
        side = fault.side if fault.kind == "packets dropped" else ""
        return cls(
            *(fault.number, fault.kind, fault.cluster, side, victim, token, wrong, next_token_s, answers),
            *(recoveries, is_missed),
        )

    @property
    def paused(self) -> bool:
        """Whether anybody could have noticed, or others took over."""
        return self.next_token_s is not None and (self.next_token_s >= PAUSE_S or self.recoveries > 0)


PAUSE_S = 0.5


class Log:
    """A file that is appended to. What was torn is left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.outcomes: list[Outcome] = []
        self.fresh_s: dict[str, list[float]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError):
                continue

    def _take(self, entry: dict[str, object]) -> None:
        if "fresh_s" in entry:
            self.fresh_s.setdefault(str(entry["cluster"]), []).append(float(str(entry["fresh_s"])))
        else:
            self.outcomes.append(Outcome(**entry))  # type: ignore[arg-type]

    def left(self, faults: Iterable[Fault]) -> tuple[Fault, ...]:
        """Those that have not been tried."""
        tried = {outcome.number for outcome in self.outcomes}
        return tuple(fault for fault in faults if fault.number not in tried)

    def add(self, outcome: Outcome) -> None:
        self._write(asdict(outcome))

    def add_fresh(self, cluster: str, seconds: float) -> None:
        self._write({"cluster": cluster, "fresh_s": seconds})

    def _write(self, entry: dict[str, object]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(entry)


def table(outcomes: Sequence[Outcome]) -> str:
    """For each kind of fault how many there were, how many made a pause, and how long from the fault to the next token."""
    rows: list[tuple[str, ...]] = [("FAULT", "TIMES", "PAUSED", "WRONG", "MEDIAN", "P90", "MAX")]
    for kind in dict.fromkeys(outcome.kind for outcome in sorted(outcomes, key=lambda each: each.kind)):
        rows.append(_row(kind, [outcome for outcome in outcomes if outcome.kind == kind]))
    rows.append(_row("all", outcomes))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _row(name: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    times = sorted(pauses(outcomes))
    figures = (
        ("-", "-", "-")
        if not times
        else tuple(f"{quantile(times, share):.1f} s" for share in (0.5, 0.9, 1.0))
    )
    wrong = sum(bool(outcome.wrong) for outcome in outcomes)
    return name, str(len(outcomes)), str(len(times)), str(wrong), *figures


def pauses(outcomes: Iterable[Outcome]) -> list[float]:
    """From fault to next token, of those that made a pause."""
    return [
        outcome.next_token_s for outcome in outcomes if outcome.paused and outcome.next_token_s is not None
    ]


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that so great a share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * len(ordered) * 1000) // 1000) - 1)]
