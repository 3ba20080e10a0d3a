"""The chaos benchmark in short: one session, a fault of each sort that hosts have, and its answers go on as if nothing were."""

from __future__ import annotations

import pytest

from benchmarks.chaos_cluster import PROMPTS, Stage
from benchmarks.chaos_schedule import Fault, Kind, schedule
from tests.system.lan import Lan

SEED = 7
KINDS: tuple[Kind, ...] = (
    "rank killed",
    "host frozen",
    "rank frozen",
    "cable pulled",
    "packets dropped",
    "slow to a crawl",
    "out of memory",
)


@pytest.fixture(autouse=True)
def leaves_nothing() -> None:
    """In place of the check of each test: `Stage.end` looks at machines that this test makes."""


def faults() -> list[Fault]:
    found = schedule(SEED, len(KINDS), len(PROMPTS), only=KINDS, clusters=("two hosts",))
    return sorted(found, key=lambda fault: KINDS.index(fault.kind))


@pytest.mark.timeout(600)
def test_answers_go_on_whatever_befalls_their_hosts() -> None:
    said: list[str] = []
    with Lan() as lan:
        stage = Stage(lan, said.append)
        with stage, stage.session("two hosts") as session:
            assert session.several_at_once() == []
            for fault in faults():
                stage.wait_well()
                session.wait_ready()
                outcome = session.disturb(fault)
                stage.heal()
                assert outcome.wrong == "", f"{outcome}\n{said}"
                assert not outcome.is_missed, outcome
                # A rank that needs no more than it has until its answer ends gets to the end.
                assert outcome.recoveries or fault.kind == "out of memory", outcome
        stage.end()
