"""The pages: rendered here and complete by themselves. Scripts keep them up to date, and hold the chat.

Whatever a page shows is what the sources say at that moment. A script that hears of something new fetches the same page again
and takes over what is different; it makes no page of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import trio
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from edgellm.console import forms, views
from edgellm.console.pipeline import pipeline
from edgellm.console.problems import kind_of, problem_of
from edgellm.console.rendering import rendered
from edgellm.console.sources import Sources
from edgellm.console.timeline import timeline
from edgellm.errors import EdgeError

FIRST_LOOK_S = 1.0
"""A page is shown without the swarm rather than later than that; its script brings it as soon as it has been seen."""
LOG_LINES = 14
STATIC = Path(__file__).parent / "static"

Shown = TypeVar("Shown")


def pages(sources: Sources) -> APIRouter:
    """All that browsers are shown."""
    router = APIRouter(include_in_schema=False)
    static = StaticFiles(directory=STATIC)
    desk = _Desk(sources)

    @router.get("/")
    async def home() -> Response:
        return await (desk.overview("/") if sources.session is None else desk.session(sources.session, "/"))

    @router.get("/console/swarm")
    async def swarm() -> Response:
        return await desk.overview("/console/swarm")

    @router.get("/console/sessions")
    @router.get("/console/hosts")
    async def parts() -> Response:
        return RedirectResponse("/", 303)

    @router.post("/console/sessions")
    async def open_session(request: Request) -> Response:
        return await desk.open_session(await _fields(request))

    @router.get("/console/sessions/{name}")
    async def session(name: str) -> Response:
        return await desk.session(name, _session_path(name))

    @router.get("/console/sessions/{name}/{action}")
    async def session_after_action(name: str, action: str) -> Response:
        return RedirectResponse(_session_path(name), 303)

    @router.post("/console/sessions/{name}/swap")
    async def swap(name: str, request: Request) -> Response:
        return await desk.swap(name, await _fields(request))

    @router.post("/console/sessions/{name}/close")
    async def close(name: str) -> Response:
        await sources.sessions.close(name)
        return RedirectResponse("/", 303)

    @router.get("/console/sessions/{name}/answers/{request_id}")
    async def answer(name: str, request_id: str) -> Response:
        return await desk.answer(name, request_id)

    @router.post("/console/hosts")
    async def start_host(request: Request) -> Response:
        return await desk.start_host(await _fields(request))

    @router.post("/console/hosts/{host}/stop")
    async def stop_host(host: str) -> Response:
        await sources.hosts.stop(host)
        return RedirectResponse("/#hosts-title", 303)

    @router.post("/console/hosts/{host}/pause")
    async def pause_host(host: str) -> Response:
        await sources.hosts.pause(host)
        return RedirectResponse("/#hosts-title", 303)

    @router.post("/console/hosts/{host}/resume")
    async def resume_host(host: str) -> Response:
        await sources.hosts.resume(host)
        return RedirectResponse("/#hosts-title", 303)

    @router.get("/console/machine")
    async def machine() -> Response:
        return await desk.machine()

    @router.get("/login")
    async def login() -> Response:
        return rendered("login.html", places=(), here="/login")

    @router.get("/console/static/{name}")
    async def file(name: str, request: Request) -> Response:
        return await static.get_response(name, request.scope)

    return router


def problem_page(problem: views.Problem, status: int) -> Response:
    """An error instead of a page."""
    headings = {404: "There is no such thing", 409: "Not possible now", 503: "Not now"}
    heading = headings.get(status, "This went wrong")
    return rendered("problem.html", status, places=(), here="", fault=problem, heading=heading)


@dataclass(frozen=True, slots=True)
class _Place:
    path: str
    label: str


@dataclass(frozen=True, slots=True)
class _Load:
    devices: int
    leased: int
    free_memory_bytes: int


@dataclass(frozen=True, slots=True)
class _Desk:
    """Asks the sources, and renders what they say."""

    sources: Sources

    async def overview(
        self,
        here: str,
        *,
        order: forms.Filled = forms.EMPTY_ORDER,
        lend: forms.Filled = forms.EMPTY_LEND,
        error: EdgeError | None = None,
        status: int = 200,
    ) -> Response:
        swarm = await self._swarm()
        sessions, sessions_fault = await _or_problem(self.sources.sessions.all(), ())
        hosts = self.sources.hosts.all()
        return await self._page(
            "overview.html",
            status,
            here=here,
            swarm=swarm,
            load=_load(swarm),
            ambiguous=_ambiguous(swarm),
            sessions=sessions,
            sessions_fault=sessions_fault,
            drawn={session.name: pipeline(session, swarm) for session in sessions},
            opens=self.sources.session is None,
            hosts=views.Hosts(hosts=list(hosts), offered=self.sources.hosts.offered),
            logs={host.id: self.sources.hosts.log(host.id)[-LOG_LINES:] for host in hosts},
            order=order,
            lend=lend,
            fault=problem_of(error) if error else None,
        )

    async def open_session(self, given: dict[str, str]) -> Response:
        understood = forms.new_session(given)
        if isinstance(understood, forms.Filled):
            return await self.overview("/", order=understood, status=422)
        try:
            opened = await self.sources.sessions.open(understood.asked)
        except EdgeError as error:
            return await self.overview("/", order=understood.filled, error=error, status=kind_of(error)[0])
        return RedirectResponse(_session_path(opened.name), 303)

    async def start_host(self, given: dict[str, str]) -> Response:
        understood = forms.new_host(given)
        if isinstance(understood, forms.Filled):
            return await self.overview("/", lend=understood, status=422)
        try:
            await self.sources.hosts.start(understood.asked)
        except EdgeError as error:
            return await self.overview("/", lend=understood.filled, error=error, status=kind_of(error)[0])
        return RedirectResponse("/#hosts-title", 303)

    async def session(
        self,
        name: str,
        here: str,
        *,
        swap_to: str = "",
        fault: views.Problem | None = None,
        status: int = 200,
    ) -> Response:
        session = await self.sources.sessions.one(name)
        swarm = await self._swarm()
        return await self._page(
            "session.html",
            status,
            here=here,
            page=here,
            session=session,
            own=self.sources.session == name,
            drawn=pipeline(session, swarm),
            model_names=sorted({model.name for model in swarm.models}),
            swap_to=swap_to,
            fault=fault,
        )

    async def swap(self, name: str, given: dict[str, str]) -> Response:
        here = _session_path(name)
        understood = forms.swap(given)
        if isinstance(understood, forms.Filled):
            message = f"the model's name {understood.errors.get('model', '')}".rstrip(".")
            fault = views.Problem(message=message, type="usage")
            return await self.session(name, here, swap_to=understood["model"], fault=fault, status=422)
        try:
            await self.sources.sessions.swap(name, understood.asked.model)
        except EdgeError as error:
            return await self.session(
                name,
                here,
                swap_to=understood.asked.model,
                fault=problem_of(error),
                status=kind_of(error)[0],
            )
        return RedirectResponse(here, 303)

    async def answer(self, name: str, request_id: str) -> Response:
        timings = await self.sources.engines.timings(name, request_id)
        drawn = timeline(timings)
        if drawn is None:
            fault = views.Problem(message="the engine kept no times of this answer", type="not_found")
            return problem_page(fault, 404)
        return await self._page("answer.html", here="", name=name, timings=timings, drawn=drawn)

    async def machine(self) -> Response:
        doctor, doctor_fault = await _or_problem(self.sources.machine.doctor(), None)
        kv, kv_fault = await _or_problem(self.sources.machine.kv(), None)
        return await self._page(
            "machine.html",
            here="/console/machine",
            doctor=doctor,
            doctor_fault=doctor_fault,
            kv=kv,
            kv_fault=kv_fault,
        )

    async def _swarm(self) -> views.Swarm:
        unseen = views.Swarm(peers=[], models=[], refused=[], seen_at=None)
        with trio.move_on_after(FIRST_LOOK_S):
            swarm, fault = await _or_problem(self.sources.swarm.current(), unseen)
            return swarm if fault is None else swarm.model_copy(update={"problem": fault})
        return unseen

    async def _page(self, template: str, status: int = 200, **shown: Any) -> Response:
        own = self.sources.session
        first = (
            (_Place("/", "Swarm"),) if own is None else (_Place("/", own), _Place("/console/swarm", "Swarm"))
        )
        places = (*first, _Place("/console/machine", "This machine"))
        # Of a large swarm it takes long, and what else this process does is not to wait.
        return await trio.to_thread.run_sync(partial(rendered, template, status, places=places, **shown))


async def _or_problem(asked: Awaitable[Shown], otherwise: Shown) -> tuple[Shown, views.Problem | None]:
    """One part of a page that cannot be had does not take the others away."""
    try:
        return await asked, None
    except EdgeError as error:
        return otherwise, problem_of(error)


async def _fields(request: Request) -> dict[str, str]:
    return forms.fields_of(await request.body())


def _session_path(name: str) -> str:
    return f"/console/sessions/{quote(name, safe='')}"


def _load(swarm: views.Swarm) -> _Load:
    devices = [device for peer in swarm.peers for device in peer.devices]
    return _Load(
        len(devices),
        sum(not device.free for device in devices),
        sum(peer.free_memory_bytes for peer in swarm.peers),
    )


def _ambiguous(swarm: views.Swarm) -> frozenset[str]:
    """Names that more than one version of a model has: they are told apart by their digests."""
    names = Counter(model.name for model in swarm.models)
    return frozenset(name for name, count in names.items() if count > 1)
