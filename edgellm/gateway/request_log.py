"""Which requests an endpoint is answering, noted where it outlives the endpoint, and what a client is told that asks again what
an endpoint before this one left unfinished.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

from edgellm.gateway.client import Client
from edgellm.gateway.engine import Headers
from edgellm.gateway.guard import Head

HEADER = b"x-edgellm-unfinished"
"""Of an answer to a request whose `x-request-id` was that of an unfinished one: when that one began, in RFC 3339's form."""
_ASKED_BY = "x-request-id"
_PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"))
"""That generate."""


class Left(Protocol):
    """A request that was never answered."""

    @property
    def at(self) -> float:
        """When it began."""


class RequestLog(Protocol):
    """Thread-safe; never blocks for long."""

    def begin(self, path: str, request_id: str = "") -> int:
        """A request begins; gives the number by which it ends."""

    def end(self, number: int, how: str) -> None:
        """`how`: "finished", "aborted" by its client, or "failed"."""

    def left_by(self, request_id: str) -> Left | None:
        """The unfinished one of that id."""


@contextmanager
def noted(requests: RequestLog | None, client: Client, head: Head) -> Iterator[Headers]:
    """Notes a request that generates while it is answered; gives headers for its answer."""
    if requests is None or head.path not in _PATHS:
        yield ()
        return
    request_id = head.headers.get(_ASKED_BY, "")
    left = requests.left_by(request_id)
    number = requests.begin(head.path, request_id)
    try:
        yield ((HEADER, _instant(left.at).encode()),) if left else ()
    finally:
        whole = client.has_answered and client.status < 300
        requests.end(number, "finished" if whole else "aborted" if client.is_gone else "failed")


def _instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
