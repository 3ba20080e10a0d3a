"""What the console's API says of itself is so: requests made from its description, good and bad, over the real server."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from edgellm.console.app import create_app
from edgellm.console.serving import open_port, serve
from tests.unit.console_sources import rules, scripted

EXAMPLES = 6
_spec = create_app(scripted(), rules()).openapi()
schema = schemathesis.openapi.from_dict(_spec, config=SchemathesisConfig())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A console in a thread of its own, as the requests are made without trio."""
    served: list[trio.CancelScope] = []
    tokens: list[trio.lowlevel.TrioToken] = []
    ready = threading.Event()
    with open_port("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]

        async def run() -> None:
            with trio.CancelScope() as scope:
                served.append(scope)
                tokens.append(trio.lowlevel.current_trio_token())
                ready.set()
                await serve(create_app(scripted(), rules(port)), listening)

        thread = threading.Thread(target=trio.run, args=(run,))
        thread.start()
        assert ready.wait(10)
        yield f"http://127.0.0.1:{port}"
        tokens[0].run_sync_soon(served[0].cancel)
        thread.join(10)
        assert not thread.is_alive()


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_it_keeps_its_word(case: schemathesis.Case, url: str) -> None:
    case.call_and_validate(base_url=url)
