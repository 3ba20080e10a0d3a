"""A session in the foreground: what its line says, and how it ends."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.cli import _foreground
from edgellm.cli._foreground import Work, speed, status, stay
from edgellm.errors import EdgeError
from edgellm.sessions.registry import Registry, SessionRecord, write_record
from edgellm.types.quantity import format_duration
from edgellm.wire import session_pb2
from tests.unit.test_sessions import daemon


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "s", tmp_path / "j")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Has something happen between two looks at the session, by their number."""

    def set_(happens: Callable[[int], None]) -> None:
        count = iter(range(1, 50))
        monkeypatch.setattr(_foreground.time, "sleep", lambda _: happens(next(count)))

    return set_


def described(**more: object) -> session_pb2.Description:
    return session_pb2.Description(name="amber", model="tiny", state="ready", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0.4, "0s"), (59.6, "1m"), (90, "1m 30s"), (900, "15m"), (7200, "2h"), (7530, "2h 5m")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_line_says_what_goes_on() -> None:
    assert status(described(), None, None, 0.0) == "amber · tiny · ready"
    busy = described(endpoint="http://127.0.0.1:8000/v1", max_cost_s=7200.0, cost_s=70.0, running_requests=3)
    line = status(busy, Work(2, 1, 500, 0.0), 134.6, 0.0)
    assert line == (
        "amber · tiny · ready · 2 running, 1 waiting · 135 tok/s · lent 1m 10s of 2h · http://127.0.0.1:8000/v1"
    )
    assert "3 running" in status(busy, None, None, 0.0)
    idle = described(idle_expires_unix_ms=1_090_000)
    assert status(idle, Work(0, 0, 500, 0.0), 0.0, 1000.0) == (
        "amber · tiny · ready · 0 running · 0 tok/s · closes in 1m 30s"
    )


def test_speed_is_between_two_looks_at_the_same_engine() -> None:
    first, second = Work(1, 0, 100, 10.0), Work(1, 0, 350, 12.0)
    assert speed(first, second) == 125.0
    assert speed(None, first) is speed(first, None) is speed(second, Work(1, 0, 5, 14.0)) is None
    assert speed(first, first) is None


def test_ctrl_c_closes_it_and_says_so(
    registry: Registry,
    looks: Callable[[Callable[[int], None]], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    def interrupt(look: int) -> None:
        if look == 2:
            raise KeyboardInterrupt

    looks(interrupt)
    with daemon(registry) as (serving, files):
        # A process that is not there: nobody waits for its end.
        write_record(files, SessionRecord("amber", "tiny", 1, 0.0, "ready"))
        stay(registry, "amber", lambda: None, quiet=False)
        assert serving.closed.is_set()
    assert registry.names() == ()
    assert capfd.readouterr().err.splitlines() == [
        "amber · tiny · ready",
        "closing amber …",
        "closed amber: you ended it",
    ]


def test_its_end_is_told_with_the_reason(
    registry: Registry,
    looks: Callable[[Callable[[int], None]], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    with daemon(registry) as (serving, files):

        def end(look: int) -> None:
            serving.description.state, serving.description.detail = "closing", "idle for 15m"
            if look == 2:
                shutil.rmtree(files.directory)

        looks(end)
        stay(registry, "amber", lambda: print("amber"), quiet=False)
    out, err = capfd.readouterr()
    assert out == "amber\n"
    assert err.splitlines() == [
        "amber · tiny · ready",
        "amber · tiny · closing (idle for 15m)",
        "closed amber: idle for 15m",
    ]


def test_a_session_that_breaks_says_why(
    registry: Registry, looks: Callable[[Callable[[int], None]], None]
) -> None:
    looks(lambda look: None)
    _, files = registry.reserve("amber")
    write_record(files, SessionRecord("amber", "tiny", 1, 0.0, "failed", "host bob was lost", "ask again", 3))
    with pytest.raises(EdgeError, match="host bob was lost") as caught:
        stay(registry, "amber", lambda: None, quiet=True)
    assert caught.value.exit_code == 3
