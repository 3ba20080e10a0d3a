"""The ledger: counts once, forgets the oldest, survives other processes, damage and a full disk."""

from __future__ import annotations

import multiprocessing
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.trust import ledger as ledger_module
from edgellm.trust.book import TrustBook
from edgellm.trust.ledger import MAX_ROWS, Ledger
from edgellm.trust.settle import Settled
from edgellm.trust.verdict import Judgement
from tests.unit.planning_samples import host
from tests.unit.test_trust_receipts import HOST, NOW, RECEIPT, REQUESTER, countersign, sign

SIGNED = countersign(sign(RECEIPT, REQUESTER), HOST)


def hosts(*names: str) -> frozenset[str]:
    return frozenset(names)


def opened(directory: Path) -> Ledger:
    return Ledger(directory, now=lambda: NOW)


def test_a_receipt_counts_once(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    assert ledger.served(RECEIPT, "alice", SIGNED)
    assert not ledger.served(RECEIPT, "alice", SIGNED), "a replay adds nothing"
    assert ledger.served(replace(RECEIPT, lease="0", answers=1, tokens=5), "alice", None)
    record = opened(tmp_path).record(HOST.peer)
    assert record is not None
    assert (record.name, record.answers, record.tokens, record.unsigned) == ("alice", 3, 75, 1)
    assert ledger.receipts(HOST.peer) == (SIGNED,)
    assert ledger.record("somebody else") is None


def test_checks_catch_and_forgiveness_takes_back(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    names = {"m": "mallory", "a": "alice", "b": "bob"}
    assert ledger.checked(Judgement(right=(hosts("a"), hosts("b")), wrong=(hosts("m"),)), names) == ("m",)
    assert ledger.checked(Judgement(right=(hosts("a"), hosts("b")), wrong=(hosts("m"),)), names) == ()
    caught = ledger.record("m")
    assert caught is not None
    assert caught.caught is not None
    assert (caught.name, caught.checks_failed) == ("mallory", 2)
    book = TrustBook(ledger, now=lambda: NOW)
    judged = book.judged((host("m"), host("a"), host("unknown")))
    assert [bool(one.standing.excluded) for one in judged] == [True, False, False]
    ledger.forgive("m")
    forgiven = ledger.record("m")
    assert forgiven is not None
    assert (forgiven.caught, forgiven.checks_failed) == (None, 0)
    honest = ledger.record("a")
    assert honest is not None
    assert honest.checks_passed == 2


def test_suspects_are_caught_over_several_answers(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    assert ledger.checked(Judgement(right=(hosts("c"), hosts("d")), wrong=(hosts("m", "a"),)), {}) == ()
    assert ledger.checked(Judgement(right=(hosts("c"), hosts("d")), wrong=(hosts("m", "b"),)), {}) == ("m",)


def test_contradictions_weigh_less_than_verdicts(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.checked(Judgement(unresolved=(hosts("a"), hosts("b"))), {})
    ledger.checked(Judgement(right=(hosts("d"), hosts("e")), wrong=(hosts("c"),)), {})
    bad = {}
    for peer in "abc":
        record = ledger.record(peer)
        assert record is not None
        bad[peer] = sum(outcome.bad for outcome in record.outcomes)
    assert bad == {"a": 1.0, "b": 1.0, "c": 2.0}


def test_failures_make_a_host_the_last_choice(tmp_path: Path) -> None:
    book = TrustBook(opened(tmp_path), now=lambda: NOW)
    book.lost("f", "frank", "host frank was lost: silent")
    assert not book.judged((host("f"),))[0].standing.doubt
    book.lost("f", "frank", "host frank was lost: silent")
    assert book.judged((host("f"),))[0].standing.doubt


def test_nothing_grows_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_ROWS", 8)
    monkeypatch.setattr(ledger_module, "MAX_HOSTS", 5)
    ticks = iter(range(10_000))
    ledger = Ledger(tmp_path, now=lambda: NOW + next(ticks))
    ledger.checked(Judgement(wrong=(hosts("liar"),)), {})
    for index in range(30):
        ledger.served(replace(RECEIPT, lease=f"{index}", ended_at=NOW + index), "alice", None)
        ledger.failed(f"host-{index}", "x" * 5000, "y" * 5000)
        ledger.failed("often", "", "")
    records = {record.peer: record for record in ledger.records()}
    assert len(records) <= 6
    assert "liar" in records, "a liar is not forgotten by making others known"
    assert records[HOST.peer].answers == 60, "sums stay when rows go"
    assert records["often"].failures == 8
    assert MAX_ROWS > 8


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "trust.sqlite").write_bytes(b"not a database, but quite long" * 50)
    ledger = opened(tmp_path)
    assert ledger.records() == ()
    ledger.failed("a", "alice", "lost")
    assert [record.peer for record in ledger.records()] == ["a"]
    assert (tmp_path / "trust.damaged").exists()


def test_what_cannot_be_kept_ends_no_answer(tmp_path: Path) -> None:
    class Broken(Ledger):
        def _opened(self) -> sqlite3.Connection:
            raise sqlite3.OperationalError("database or disk is full")

    book = TrustBook(Broken(tmp_path))
    assert book.judged((host("a"),))[0].standing == host("a").standing
    book.lost("a", "alice", "lost")
    book.settled([Settled(RECEIPT, "alice", None, True)])


def _write(directory: Path, process: int) -> None:
    ledger = Ledger(directory, busy_s=60)
    for index in range(25):
        ledger.served(replace(RECEIPT, lease=f"{process}-{index}", answers=1, tokens=1), "alice", None)


def test_several_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(tmp_path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    record = opened(tmp_path).record(HOST.peer)
    assert record is not None
    assert (record.answers, record.tokens) == (100, 100)
