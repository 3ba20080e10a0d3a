"""Requests are noted while the endpoint answers them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio

from edgellm.gateway.request_log import Left
from tests.unit.test_gateway_server import EngineApi, endpoint


@dataclass
class Request:
    path: str
    request_id: str
    how: str = ""
    at: float = 0.0


@dataclass
class Log:
    """As `edgellm.sessions.journal.Journal`."""

    begun: list[Request] = field(default_factory=list)

    def begin(self, path: str, request_id: str = "") -> int:
        self.begun.append(Request(path, request_id))
        return len(self.begun) - 1

    def end(self, number: int, how: str) -> None:
        self.begun[number].how = how

    def left_by(self, request_id: str) -> Left | None:
        return Request("/v1/chat/completions", "lost", at=1_700_000_000.0) if request_id == "lost" else None


async def test_what_generates_is_noted_and_who_asks_again_is_told() -> None:
    log = Log()
    async with endpoint(journal=log) as it:
        first = await it.ask(x_request_id="mine")
        again = await it.ask(x_request_id="lost")
        await it.ask("GET", "/v1/models")
        await it.ask("POST", "/tokenize")
    assert "x-edgellm-unfinished" not in first.headers
    assert again.headers["x-edgellm-unfinished"] == "2023-11-14T22:13:20Z"
    expected = [("/v1/chat/completions", name, "finished") for name in ("mine", "lost")]
    assert [(one.path, one.request_id, one.how) for one in log.begun] == expected


@pytest.mark.parametrize(
    ("engine", "how"), [(EngineApi(breaks_after=1), "failed"), (EngineApi(pause_s=5), "aborted")]
)
async def test_how_it_ended_is_noted(engine: EngineApi, how: str) -> None:
    log = Log()
    async with endpoint(engine, journal=log) as it:
        stream = await it.connect()
        await stream.send_all(it.raw())
        await stream.receive_some(100)
        if how == "aborted":
            assert log.begun[0].how == ""
            await stream.aclose()
        with trio.fail_after(5):
            while not log.begun[0].how:
                await trio.sleep(0.01)
    assert log.begun[0].how == how
