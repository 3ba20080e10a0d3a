"""What the ranks of a cell count, and what the node believes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from edgellm_vllm import token_count
from edgellm_vllm.events import EventStream
from edgellm_vllm.token_count import VARIABLE, TokenCount, counted, counting, wanted

from edgellm.hosting.runner import tokens_said


def test_ranks_of_one_stage_count_the_same_tokens_once(tmp_path: Path) -> None:
    assert counted(tmp_path) == 0
    first, second = TokenCount(tmp_path, 0), TokenCount(tmp_path, 1)
    for tokens in (17, 1, 0, 1):
        first.add(tokens)
        second.add(tokens)
    assert counted(tmp_path) == 19
    TokenCount(tmp_path, 1).add(1)
    assert counted(tmp_path) == 20


def test_nobody_counts_where_nobody_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not wanted()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert wanted()
    count = counting(0)
    count.add(3)
    (tmp_path / "9").write_text("no number")
    assert counted(tmp_path) == 3


@pytest.mark.parametrize("count", [None, -1, "7", 1.5, 1 << 60, [], {}])
def test_a_cell_may_say_what_it_likes(count: object) -> None:
    assert tokens_said(json.loads(json.dumps({"event": "tokens", "count": count}))) == 0
    assert tokens_said({"event": "tokens", "count": 7}) == 7


def test_it_is_told_once_for_each_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    told: list[int] = []

    class Told(EventStream):
        def __init__(self) -> None:
            pass

        def tokens(self, count: int) -> None:
            told.append(count)

    monkeypatch.setattr(token_count, "REPORT_S", 0.01)

    async def watch() -> None:
        async with token_count.reported(Told()):
            counting_now = counting(0)
            counting_now.add(5)
            await asyncio.sleep(0.1)
            counting_now.add(2)
            await asyncio.sleep(0.1)

    monkeypatch.setenv(VARIABLE, "")
    asyncio.run(watch())
    assert told == [5, 7]
