"""The routes below /api/v1, and /health."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response

from edgellm import __version__
from edgellm.console import views
from edgellm.console.events import EventStream, PassedOn
from edgellm.console.guard import LOGIN_PATH, Rules, same
from edgellm.console.problems import problem_response
from edgellm.console.sources import Sources

_MEANINGS = {
    400: "The request cannot be understood, or asks for what cannot be",
    401: "The token is missing or wrong",
    403: "A page of another site, or a name that this console does not go by",
    404: "There is nothing of that name",
    409: "It is in a state, or this console of a kind, that does not allow this",
    408: "The body did not come in time",
    413: "The body is too large",
    415: "The body is no JSON",
    422: "A value is not what it must be",
    429: "Too much is asked at once; try again",
    500: "A defect of the console",
    501: "Not in this version",
    502: "The engine failed",
    503: "Not now; try again",
}
_EVERYWHERE = (400, 401, 403, 500, 503)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": views.ErrorBody, "description": _MEANINGS[status]}
        for status in sorted({*_EVERYWHERE, *statuses})
    }


def _events(*names: str) -> dict[int | str, dict[str, Any]]:
    """As OpenAPI 3.2 describes event streams; without names they are those of OpenAI's API."""
    properties: dict[str, Any] = {"data": {"type": "string", "contentMediaType": "application/json"}}
    if names:
        properties["event"] = {"enum": list(names)}
    event = {"type": "object", "properties": properties, "required": list(properties)}
    content = {"text/event-stream": {"itemSchema": event}}
    return {200: {"description": "Server-sent events", "content": content}}


_BODY = (408, 413, 415, 422)


def _sources(request: Request) -> Sources:
    sources: Sources = request.app.state.sources
    return sources


Given = Annotated[Sources, Depends(_sources)]
SessionName = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", description="The session's name")]
HostId = Annotated[str, Path(pattern=r"^[a-z0-9]{1,16}$", description="The host's id")]
RequestId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,128}$", description="From `x-request-id`")]

health = APIRouter()
router = APIRouter(prefix="/api/v1")


@health.get("/health", responses=_errors(), tags=["console"])
async def is_alive() -> views.Health:
    """Whether the console serves. Needs no token."""
    return views.Health()


@router.get("/version", responses=_errors(), tags=["console"])
async def version(sources: Given) -> views.Version:
    return views.Version(version=__version__, starts_hosts=sources.hosts.offered, session=sources.session)


@router.post(LOGIN_PATH.removeprefix("/api/v1"), status_code=204, responses=_errors(*_BODY), tags=["console"])
async def login(asked: views.Login, request: Request) -> Response:
    """Sets a cookie for who says the token. Without one, everybody is let in anyway."""
    rules: Rules = request.app.state.rules
    if rules.token is None:
        return Response(status_code=204)
    if not same(asked.token, rules.token):
        return problem_response(401, "authentication", "the token is wrong")
    answer = Response(status_code=204)
    answer.set_cookie(rules.cookie, rules.cookie_value, httponly=True, samesite="strict", path="/")
    return answer


@router.get("/swarm", responses=_errors(429), tags=["swarm"])
async def swarm(sources: Given) -> views.Swarm:
    """Who lends what now."""
    return await sources.swarm.current()


@router.get(
    "/swarm/events",
    responses={**_events("snapshot", "joined", "left", "changed"), **_errors(429)},
    response_class=Response,
    status_code=200,
    tags=["swarm"],
)
async def swarm_events(sources: Given) -> EventStream:
    """`snapshot` (a Swarm) at first and after trouble; `joined`, `left` and `changed` (a PeerEvent)."""
    return EventStream(sources.swarm.watch())


@router.get("/sessions", responses=_errors(), tags=["sessions"])
async def sessions(sources: Given) -> views.Sessions:
    """All sessions of this user."""
    return views.Sessions(sessions=list(await sources.sessions.all()))


@router.post("/sessions", status_code=202, responses=_errors(409, 429, *_BODY), tags=["sessions"])
async def open_session(wanted: views.NewSession, sources: Given, response: Response) -> views.Session:
    """Begins to bring a session up; its events tell how that goes."""
    opened = await sources.sessions.open(wanted)
    response.headers["location"] = f"/api/v1/sessions/{opened.name}"
    return opened


@router.get("/sessions/{name}", responses=_errors(404, 422), tags=["sessions"])
async def session(name: SessionName, sources: Given) -> views.Session:
    return await sources.sessions.one(name)


@router.delete("/sessions/{name}", status_code=204, responses=_errors(404, 409, 422), tags=["sessions"])
async def close_session(name: SessionName, sources: Given) -> Response:
    """Closes a session, and answers when everything of it is gone."""
    await sources.sessions.close(name)
    return Response(status_code=204)


@router.get(
    "/sessions/{name}/events",
    responses={**_events("progress", "state", "end"), **_errors(404, 422, 429)},
    response_class=Response,
    status_code=200,
    tags=["sessions"],
)
async def session_events(name: SessionName, sources: Given) -> EventStream:
    """`progress` (a ProgressLine) from the beginning on, `state` (a Session) whenever it is another, and at last `end`."""
    return EventStream(sources.sessions.watch(name))


@router.post(
    "/sessions/{name}/swap", status_code=202, responses=_errors(404, 409, 429, 501, *_BODY), tags=["sessions"]
)
async def swap(name: SessionName, wanted: views.Swap, sources: Given) -> views.Session:
    """Begins to put another model behind a session."""
    return await sources.sessions.swap(name, wanted.model)


@router.post(
    "/sessions/{name}/chat/completions",
    responses={
        200: {
            "description": "As the engine answers; `x-request-id` names the request for its timings",
            "headers": {"x-request-id": {"schema": {"type": "string"}}},
            "content": {
                "application/json": {"schema": {"type": "object"}},
                **_events()[200]["content"],
            },
        },
        **_errors(404, 409, 429, 501, 502, *_BODY),
    },
    response_class=Response,
    status_code=200,
    tags=["sessions"],
)
async def chat(name: SessionName, asked: views.ChatBody, sources: Given) -> PassedOn:
    """A chat of OpenAI's API with the session's model. Leaving it frees its place in the engine."""
    return PassedOn(sources.engines.ask(name, asked.model_dump()))


@router.get(
    "/sessions/{name}/timings/{request_id}", responses=_errors(404, 409, 422, 501, 502), tags=["sessions"]
)
async def timings(name: SessionName, request_id: RequestId, sources: Given) -> views.Timings:
    """Where the time of one answer went."""
    return await sources.engines.timings(name, request_id)


@router.get("/hosts", responses=_errors(), tags=["hosts"])
async def hosts(sources: Given) -> views.Hosts:
    """Hosts that were started from here."""
    return views.Hosts(hosts=list(sources.hosts.all()), offered=sources.hosts.offered)


@router.post("/hosts", status_code=201, responses=_errors(409, 429, *_BODY), tags=["hosts"])
async def start_host(wanted: views.NewHost, sources: Given, response: Response) -> views.Host:
    """Starts a host on this machine; it ends with the console."""
    started = await sources.hosts.start(wanted)
    response.headers["location"] = f"/api/v1/hosts/{started.id}"
    return started


@router.get("/hosts/{host}", responses=_errors(404, 422), tags=["hosts"])
async def host(host: HostId, sources: Given) -> views.Host:
    return sources.hosts.one(host)


@router.delete("/hosts/{host}", status_code=204, responses=_errors(404, 422), tags=["hosts"])
async def stop_host(host: HostId, sources: Given) -> Response:
    """Ends a host, and answers when it has ended; one that has is forgotten."""
    await sources.hosts.stop(host)
    return Response(status_code=204)


@router.post("/hosts/{host}/pause", responses=_errors(404, 422), tags=["hosts"])
async def pause_host(host: HostId, sources: Given) -> views.Host:
    """The host lends nothing until it resumes: no new leases from now on, running ones end in a moment."""
    return await sources.hosts.pause(host)


@router.post("/hosts/{host}/resume", responses=_errors(404, 422), tags=["hosts"])
async def resume_host(host: HostId, sources: Given) -> views.Host:
    """The host lends again."""
    return await sources.hosts.resume(host)


@router.get("/hosts/{host}/log", responses=_errors(404, 422), tags=["hosts"])
async def host_log(host: HostId, sources: Given) -> views.HostLog:
    return views.HostLog(lines=list(sources.hosts.log(host)))


@router.get("/kv", responses=_errors(), tags=["machine"])
async def kv(sources: Given) -> views.Kv:
    """What this machine keeps of KV caches, and what that was good for."""
    return await sources.machine.kv()


@router.get("/doctor", responses=_errors(429), tags=["machine"])
async def doctor(sources: Given) -> views.Doctor:
    """Whether this machine is fit to host and to ask. Takes a few seconds."""
    return await sources.machine.doctor()
