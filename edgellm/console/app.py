"""The console as one ASGI app. It needs trio beneath it."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route

from edgellm import __version__
from edgellm.console.api import health, router
from edgellm.console.gatekeeper import Gatekeeper
from edgellm.console.guard import Rules
from edgellm.console.pages import pages, problem_page
from edgellm.console.problems import invalid, kind_of, problem_of, problem_response, response_of
from edgellm.console.sources import Sources
from edgellm.errors import EdgeError


def create_app(sources: Sources, rules: Rules) -> FastAPI:
    """The pages and the API over `sources`, for those whom `rules` admit."""
    app = FastAPI(
        title="EdgeLLM console",
        version=__version__,
        openapi_url="/api/v1/openapi.json",
        # They would load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    app.state.sources, app.state.rules = sources, rules
    app.add_middleware(Gatekeeper, rules=rules)
    app.add_exception_handler(EdgeError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.include_router(health)
    app.include_router(router)
    app.include_router(pages(sources))
    return app


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgeError)
    wants_page = "text/html" in request.headers.get("accept", "")
    if wants_page and not request.url.path.startswith("/api/"):
        return problem_page(problem_of(error), kind_of(error)[0])
    return response_of(error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return invalid(error.errors())


async def _http(request: Request, error: Exception) -> Response:
    """What the router refuses: paths and methods that are not there."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        return problem_response(404, "not_found", f"there is nothing at {path[:200]!r}")
    if error.status_code == 405:
        # The router names the methods of the first route alone that has the path.
        allowed = ", ".join(sorted(_methods(request)))
        return problem_response(
            405, "invalid_request", f"{path[:200]} takes {allowed}", headers={"allow": allowed}
        )
    return problem_response(error.status_code, "invalid_request", error.detail, headers=error.headers)


def _methods(request: Request) -> set[str]:
    routes = [route for route in request.app.router.routes if isinstance(route, Route)]
    return {
        method
        for route in routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
