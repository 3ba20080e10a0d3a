"""`edgellm peers --trust`, `--forgive`, `--lent`: nobody on the network is asked."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.cli import app
from edgellm.cli._errors import told
from edgellm.cli._output import tables
from edgellm.paths import default_paths
from edgellm.trust.accounts import HostAccounts
from edgellm.trust.ledger import Ledger
from edgellm.trust.receipt import sign
from edgellm.trust.verdict import Judgement
from tests.unit.test_trust_receipts import HOST, LEASE, RECEIPT, REQUESTER

LIAR = "12D3KooWLiarLiarLiarLiarLiarLiarLiarLiarLiarLiarLiar"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    monkeypatch.setattr(tables, "width", 250)


def run(*words: str) -> int:
    return told(lambda: app(["peers", *words], standalone_mode=False))


def experienced() -> Ledger:
    ledger = Ledger(default_paths().state)
    ledger.served(replace(RECEIPT, ended_at=time.time()), "alice", None)
    ledger.checked(
        Judgement(right=(frozenset([HOST.peer]),), wrong=(frozenset([LIAR]),)),
        {HOST.peer: "alice", LIAR: "mallory"},
    )
    for _ in range(2):
        ledger.failed("12D3KooWFrank", "frank", "lost")
    return ledger


def test_a_table_says_who_is_caught_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--trust") == 0
    assert "no host has answered yet" in capsys.readouterr().err
    experienced()
    assert run("--trust") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "trusted" in lines["alice"]
    assert "70" in lines["alice"].split()
    assert "caught: its own computation differs from what others found" in lines["mallory"]
    assert "avoid: failed often lately, the last choice" in lines["frank"]


def test_json_has_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    experienced()
    assert run("--trust", "--json") == 0
    known = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert {name: entry["state"] for name, entry in known.items()} == {
        "alice": "trusted",
        "mallory": "caught",
        "frank": "avoid",
    }
    assert known["alice"]["answers"] == 2
    assert known["mallory"]["caught_at"] == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("called", ["mallory", LIAR, LIAR[:20], "…" + LIAR[-8:]])
def test_forgiven(called: str, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = experienced()
    assert run("--forgive", called) == 0
    assert "mallory is forgiven" in capsys.readouterr().err
    record = ledger.record(LIAR)
    assert record is not None
    assert record.caught is None


@pytest.mark.parametrize(
    ("called", "why"), [("nobody", "no host"), ("12D3", "means 3 hosts"), ("", "no host")]
)
def test_forgiving_needs_one_host(called: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    experienced()
    assert run("--forgive", called) == 2
    assert why in capsys.readouterr().err


def test_what_was_lent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--lent") == 0
    assert "has lent nothing yet" in capsys.readouterr().err
    accounts = HostAccounts(HOST, default_paths().state, now=lambda: LEASE.granted_at + 13)
    accounts.countersign(sign(RECEIPT, REQUESTER), LEASE)
    accounts.ended(LEASE, "released")
    assert run("--lent") == 0
    [_, line] = capsys.readouterr().out.splitlines()
    assert f"…{REQUESTER.peer[-8:]}" in line
    assert line.split()[-4:] == ["13s", "2", "70", "released"]
    assert run("--lent", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["tokens"] == 70


def test_one_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--lent", "--trust") == 2
    assert "exclude each other" in capsys.readouterr().err
