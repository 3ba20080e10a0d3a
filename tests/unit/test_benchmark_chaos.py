"""The chaos benchmark's own judgement: which faults come, what is wrong with an answer, how long a pause was, what is kept."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chaos import figures_of
from benchmarks.chaos_answers import Answer, Stream, difference, gap_of, wrong_of
from benchmarks.chaos_log import Log, Outcome, quantile, table
from benchmarks.chaos_schedule import KINDS, SHARES, schedule

FAULTS = schedule(1, 200, 6)
IDS = tuple(range(100, 150))


def outcome(number: int = 0, *, wrong: str = "", next_token_s: float | None = 4.0) -> Outcome:
    fault = next(fault for fault in FAULTS if fault.number == number)
    return Outcome.of(fault, "alice", 17, wrong, next_token_s, 2)


def test_a_seed_gives_the_same_faults_again() -> None:
    assert schedule(1, 200, 6) == FAULTS
    assert schedule(2, 200, 6) != FAULTS
    assert {fault.number for fault in FAULTS} == set(range(200))
    begin = {fault.number: fault for fault in schedule(1, 20, 6)}
    assert begin.items() <= {fault.number: fault for fault in FAULTS}.items()


def test_every_kind_and_every_cluster_has_its_share() -> None:
    kinds = Counter(fault.kind for fault in FAULTS)
    assert kinds.keys() == set(KINDS)
    assert max(kinds.values()) - min(kinds.values()) <= 1
    assert list(dict.fromkeys(fault.cluster for fault in FAULTS)) == list(SHARES)
    only = schedule(1, 20, 6, only=("rank killed",), clusters=("three hosts",))
    assert {(fault.kind, fault.cluster) for fault in only} == {("rank killed", "three hosts")}


def test_answers_that_are_not_as_undisturbed() -> None:
    assert difference(IDS, IDS) == ""
    assert difference(IDS[:-3], IDS) == "3 tokens missing at the end"
    assert difference((*IDS, 1), IDS) == "1 tokens too many at the end"
    assert difference((*IDS[:20], *IDS[18:]), IDS) == "2 tokens doubled at 20"
    assert difference((*IDS[:20], *IDS[21:]), IDS) == "1 tokens lost at 20"
    assert difference((*IDS[:20], *range(30)), IDS) == "another answer from token 20 on"
    whole = Answer([(1.0, IDS[:10]), (2.0, IDS[10:])], "length", is_whole=True)
    assert wrong_of(whole, IDS) == ""
    assert wrong_of(replace(whole, is_whole=False), IDS) == "ended without its end after 50 tokens"
    assert wrong_of(replace(whole, failure="gone"), IDS) == "broke after 50 tokens: gone"


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_no_difference_goes_unseen(one: list[int], other: list[int]) -> None:
    assert (difference(one, other) == "") == (one == other)


@pytest.mark.parametrize(
    ("times", "gap"),
    [
        ([1.0, 2.0, 2.1, 2.2, 9.0, 9.1], 7.0),
        ([1.0, 2.1, 2.2, 2.3], 0.1),
        ([8.0, 8.1], 6.0),
        ([1.0, 2.0], None),
        ([], None),
    ],
)
def test_a_pause_ends_after_the_longest_silence(times: list[float], gap: float | None) -> None:
    assert gap_of(times, 2.0) == (None if gap is None else pytest.approx(gap))


def test_a_run_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "out" / "log.jsonl"
    log = Log(path)
    log.add(outcome(3))
    log.add_fresh("two hosts", 12.0)
    log.add(outcome(4, wrong="gone", next_token_s=None))
    path.write_bytes(path.read_bytes() + b'{"number": 5, "ki')
    again = Log(path)
    assert (again.outcomes, again.fresh_s) == (log.outcomes, {"two hosts": [12.0]})
    assert {fault.number for fault in again.left(FAULTS)} == set(range(200)) - {3, 4}


def test_wrong_answers_and_long_pauses_miss_their_bars() -> None:
    log = Log(Path("/nonexistent"))
    log.outcomes += [outcome(number) for number in range(10)]
    held = {figure.name: figure.holds for figure in figures_of(log, FAULTS, is_whole_run=False)}
    assert held["answers as undisturbed"] is True
    assert held["next token, two hosts and a spare, median"] is False
    log.outcomes.append(outcome(10, wrong="1 tokens lost at 7"))
    log.fresh_s["two hosts"] = [3.0, 3.5, 90.0]
    held = {figure.name: figure.holds for figure in figures_of(log, FAULTS, is_whole_run=True)}
    assert held["answers as undisturbed"] is False
    assert held["faults"] is False
    assert held["next token, two hosts, ratio to a fresh bring-up"] is False
    assert not any(
        figures_of(Log(Path("/nonexistent")), FAULTS, is_whole_run=True)[index].holds for index in (0, 1)
    )


def test_what_is_told_of_each_kind() -> None:
    (head, *rows, everything) = table(
        [outcome(number, next_token_s=float(number)) for number in range(11)]
    ).splitlines()
    assert head.split() == ["FAULT", "TIMES", "PAUSED", "WRONG", "MEDIAN", "P90", "MAX"]
    assert len(rows) == 11
    assert everything.split() == ["all", "11", "10", "0", "5.0", "s", "9.0", "s", "10.0", "s"]
    assert [quantile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.25, 0.5, 0.9, 1.0)] == [1, 1, 2, 4, 4]


@contextmanager
def endpoint(*events: object, status: int = 200) -> Iterator[int]:
    """Streams these events and then ends the connection."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.end_headers()
            for event in events:
                said = event if isinstance(event, str) else json.dumps(event)
                self.wfile.write(f"data: {said}\n\n".encode())

        def log_message(self, *arguments: object) -> None:
            """Tells nobody."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def streamed(port: int) -> Answer:
    machine: Any = SimpleNamespace(namespaces=SimpleNamespace(network=nullcontext))
    return Stream(cast(Any, machine), port, "def", 3, "tiny").wait()


def tokens(*ids: int, finish_reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"text": "x", "token_ids": list(ids), "finish_reason": finish_reason}]}


def test_a_stream_is_read_to_its_end() -> None:
    with endpoint(tokens(1, 2), tokens(3, finish_reason="length"), "[DONE]") as port:
        answer = streamed(port)
    assert (answer.ids, answer.finish_reason, wrong_of(answer, (1, 2, 3))) == ((1, 2, 3), "length", "")


def test_streams_that_break_are_told() -> None:
    with endpoint(tokens(1, 2)) as port:
        assert wrong_of(streamed(port), (1, 2)) == "ended without its end after 2 tokens"
    with endpoint(tokens(1), {"error": {"message": "the session's engine broke off"}}) as port:
        assert wrong_of(streamed(port), (1, 2)) == "broke after 1 tokens: the session's engine broke off"
    with endpoint({"error": "busy"}, status=429) as port:
        assert wrong_of(streamed(port), (1, 2)).startswith("broke after 0 tokens: status 429")
    assert "ConnectionRefusedError" in wrong_of(streamed(port), ())
