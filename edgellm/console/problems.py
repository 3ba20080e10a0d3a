"""Errors as answers: which status goes with which, and the one shape of all bodies from 400 on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from edgellm.console import sources, views
from edgellm.errors import (
    DiscoveryError,
    DiskFull,
    EdgeError,
    EngineError,
    LeaseError,
    ModelError,
    NetworkError,
    PlanError,
    SessionError,
    UsageError,
)


class BrokenOff(Exception):
    """An answer ended in the middle; raised so that the server ends its connection, and nobody takes it for whole."""


_KINDS: tuple[tuple[type[EdgeError], int, str], ...] = (
    (sources.NotKnown, 404, "not_found"),
    (sources.Conflict, 409, "conflict"),
    (sources.NotOffered, 409, "not_offered"),
    (sources.NotThere, 501, "not_there"),
    (sources.Busy, 429, "busy"),
    (sources.Unavailable, 503, "unavailable"),
    (UsageError, 400, "usage"),
    (ModelError, 400, "model"),
    (SessionError, 409, "session"),
    (PlanError, 409, "plan"),
    (DiscoveryError, 503, "discovery"),
    (NetworkError, 503, "network"),
    (LeaseError, 503, "lease"),
    (DiskFull, 503, "disk_full"),
    (EngineError, 502, "engine"),
)
"""The first that fits."""
RETRY_S = 2
MAX_MESSAGE = 2000


def kind_of(error: EdgeError) -> tuple[int, str]:
    """The status and the `type` of an error."""
    return next(
        ((status, kind) for known, status, kind in _KINDS if isinstance(error, known)), (500, "internal")
    )


def problem_of(error: EdgeError) -> views.Problem:
    return views.Problem(message=str(error), remedy=error.remedy, type=kind_of(error)[1])


def response_of(error: EdgeError) -> JSONResponse:
    status, kind = kind_of(error)
    headers = {"retry-after": str(RETRY_S)} if status in (429, 503) else None
    return problem_response(status, kind, str(error), error.remedy, headers)


def problem_response(
    status: int, kind: str, message: str, remedy: str = "", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    # Names that somebody made up are told back to them, and need not be text that can be sent.
    said = message[:MAX_MESSAGE].encode(errors="replace").decode()
    problem = views.Problem(message=said, remedy=remedy, type=kind)
    return JSONResponse(views.ErrorBody(error=problem).model_dump(), status, headers)


def invalid(errors: Sequence[Any]) -> JSONResponse:
    """What pydantic finds wrong with a request: its first finding, and where."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return problem_response(400, "invalid_request", "the body is no JSON")
    place = ".".join(str(part) for part in first["loc"][1:]) or "the body"
    return problem_response(422, "invalid_request", f"{place}: {first['msg']}")
