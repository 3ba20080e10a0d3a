"""Figures, their bars, and what is written of them."""

import json
from pathlib import Path

import pytest

from benchmarks.report import Figure, MachineFacts, current_commit, document, table, this_machine, write

MACHINE = MachineFacts("a CPU", 2, 8 << 30, "Linux 6.1", "3.11.2")


@pytest.mark.parametrize(
    ("value", "bound", "holds"),
    [
        (0.95, "at least", True),
        (0.94, "at least", False),
        (1.25, "at most", True),
        (1.26, "at most", False),
    ],
)
def test_a_bar_is_kept_up_to_itself(value, bound, holds):
    bar = 0.95 if bound == "at least" else 1.25
    assert Figure("ratio", value, "", bar, bound).holds is holds


def test_no_bar_neither_holds_nor_fails():
    assert Figure("speed", 3.0, "tok/s").holds is None


def test_the_file_says_all_of_it(tmp_path: Path):
    figures = [Figure("speed", 300.0, "tok/s"), Figure("ratio", 0.5, "", 0.95)]
    path = tmp_path / "out" / "main.json"
    write(path, document(figures, MACHINE, "abc"))
    assert json.loads(path.read_text()) == {
        "figures": {
            "speed": {"value": 300.0, "bar": None, "unit": "tok/s", "holds": None},
            "ratio": {"value": 0.5, "bar": 0.95, "unit": "", "holds": False},
        },
        "machine": {
            "cpu": "a CPU",
            "cores": 2,
            "memory_bytes": 8 << 30,
            "system": "Linux 6.1",
            "python": "3.11.2",
        },
        "commit": "abc",
    }
    assert [entry.name for entry in path.parent.iterdir()] == ["main.json"]


def test_no_figure_hides_another():
    with pytest.raises(ValueError, match="share a name"):
        document([Figure("speed", 1.0, ""), Figure("speed", 2.0, "")], MACHINE, "abc")


def test_the_table_shows_value_bar_and_verdict():
    figures = [
        Figure("speed", 312.4, "tok/s"),
        Figure("ratio", 0.5, "", 0.95),
        Figure("idle", 91.0, "MB", 150, "at most"),
    ]
    assert [line.split() for line in table(figures).splitlines()] == [
        ["speed", "312", "tok/s"],
        ["ratio", "0.5", "at", "least", "0.95", "MISSED"],
        ["idle", "91", "MB", "at", "most", "150", "holds"],
    ]


def test_machine_and_commit_are_this_ones(tmp_path: Path):
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 1 << 28
    assert current_commit(tmp_path) == "unknown"
