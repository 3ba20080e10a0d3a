"""Figures with their bars, as a table and as JSON, and the machine and commit that they belong to."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

Bound = Literal["at least", "at most"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value. One without a `bar` is reported only."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    bound: Bound = "at least"

    @property
    def holds(self) -> bool | None:
        """Whether the value keeps its bar; None when there is none."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.bound == "at least" else self.value <= self.bar


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Where figures were measured."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str


def this_machine() -> MachineFacts:
    """The machine that this runs on; `cores` are those that this process may use."""
    return MachineFacts(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def current_commit(repository: Path) -> str:
    """The commit's hash, with "-dirty" when tracked files differ from it; "unknown" outside a repository."""
    done = subprocess.run(
        ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=12", "--match="],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def product_state(repository: Path) -> str:
    """What is measured, whatever else a commit changes: a hash of the product and the benchmarks; with "-dirty" as above."""
    folders = ("edgellm", "backends", "benchmarks", "models", "pyproject.toml")
    git = ("git", "-C", str(repository))
    listed = subprocess.run([*git, "ls-tree", "HEAD", *folders], capture_output=True, check=False)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *folders], check=False)
    return hashlib.sha256(listed.stdout).hexdigest()[:12] + ("-dirty" if changed.returncode else "")


def document(figures: Sequence[Figure], machine: MachineFacts, commit: str) -> dict[str, object]:
    """What goes into the JSON file. Raises ValueError when two figures share a name."""
    entries = {
        figure.name: {
            "value": figure.value,
            "bar": figure.bar,
            "unit": figure.unit,
            "holds": figure.holds,
        }
        for figure in figures
    }
    if len(entries) != len(figures):
        raise ValueError(f"two figures share a name: {sorted(figure.name for figure in figures)}")
    return {"figures": entries, "machine": asdict(machine), "commit": commit}


def write(path: Path, content: dict[str, object]) -> None:
    """Writes the JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def table(figures: Sequence[Figure]) -> str:
    """One line for each figure: its value, its bar, and whether it holds."""
    rows = [
        (figure.name, f"{_short(figure.value)} {figure.unit}".strip(), _bar_text(figure), _verdict(figure))
        for figure in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)] if rows else []
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _bar_text(figure: Figure) -> str:
    return "" if figure.bar is None else f"{figure.bound} {figure.bar:g}"


def _verdict(figure: Figure) -> str:
    return {None: "", True: "holds", False: "MISSED"}[figure.holds]


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
