"""Sources of a console that say what their script says (`edgellm.console.sources`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from edgellm.console import views
from edgellm.console.guard import LOOPBACK, Rules, hosts_of
from edgellm.console.sources import (
    Answer,
    Busy,
    Conflict,
    Event,
    NotKnown,
    NotThere,
    Sources,
)
from edgellm.console.swarm import models_of, peer_of
from edgellm.discovery.collect import Sighting
from edgellm.errors import EdgeError, EngineError
from tests.unit.samples import advert

PEER = peer_of(Sighting(advert(), 0.004))
SWARM = views.Swarm(
    peers=[PEER],
    models=models_of([PEER])[0],
    refused=[views.Refused(reason="unreachable", count=2)],
    seen_at=1000.0,
    join=["/ip4/10.0.0.1/tcp/4001/p2p/peer"],
)
SESSION = views.Session(
    name="amber",
    model="tiny",
    state="ready",
    opened_at=1000.0,
    closes_at=1900.0,
    endpoint="http://127.0.0.1:8000/v1",
    stages=[views.Stage(stage=0, peer="peer", name="alice", first_layer=0, end_layer=8, latency_s=0.004)],
)
TIMINGS = views.Timings(request_id="r1", model="tiny", prompt_tokens=4, token_s=[0.1, 0.2])
EVENTS = (b'data: {"n": 1}\n\n', b'data: {"n": 2}\n\n', b"data: [DONE]\n\n")


@dataclass
class Script:
    """What goes wrong, and what was asked."""

    error: EdgeError | None = None
    """Raised by every call."""
    defect: Exception | None = None
    endless: bool = False
    """Whether event streams and answers go on until they are left."""
    breaks_off: bool = False
    watching: int = 0
    asking: int = 0
    swaps: bool = True
    asked: list[object] = field(default_factory=list)

    def step(self) -> None:
        if self.error is not None:
            raise self.error
        if self.defect is not None:
            raise self.defect


@dataclass
class Swarms:
    script: Script

    async def current(self) -> views.Swarm:
        self.script.step()
        return SWARM

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
        self.script.step()
        joined = views.PeerEvent(peer=PEER, seen_at=1001.0)
        async with _events(self.script, Event("snapshot", SWARM), Event("joined", joined)) as events:
            yield events


@dataclass
class Sessions:
    script: Script
    known: dict[str, views.Session] = field(default_factory=lambda: {"amber": SESSION})

    async def all(self) -> tuple[views.Session, ...]:
        self.script.step()
        return tuple(self.known.values())

    async def one(self, name: str) -> views.Session:
        self.script.step()
        if name not in self.known:
            raise NotKnown(f"there is no session named {name!r}", remedy="open it")
        return self.known[name]

    async def open(self, wanted: views.NewSession) -> views.Session:
        self.script.step()
        self.script.asked.append(wanted)
        name = wanted.name or "made-up"
        if wanted.name in self.known:
            raise Conflict(f"there is a session named {name!r} already")
        if len(self.known) > 8:
            raise Busy("too many sessions are being opened")
        opened = views.Session(name=name, model=wanted.model, state="starting")
        self.known[name] = opened
        return opened

    async def close(self, name: str) -> None:
        await self.one(name)
        del self.known[name]

    async def swap(self, name: str, model: str) -> views.Session:
        session = await self.one(name)
        if not self.script.swaps:
            raise NotThere("models cannot be swapped")
        return session.model_copy(update={"state": "swapping", "swapping_to": model})

    @asynccontextmanager
    async def watch(self, name: str) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
        session = await self.one(name)
        line = views.ProgressLine(at=1000.5, who="head", phase="ray")
        async with _events(self.script, Event("progress", line), Event("state", session)) as events:
            yield events


@asynccontextmanager
async def _events(script: Script, *events: Event) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
    sending, receiving = trio.open_memory_channel[Event](len(events))
    for event in events:
        sending.send_nowait(event)
    if not script.endless:
        sending.close()
    script.watching += 1
    try:
        yield receiving
    finally:
        script.watching -= 1


@dataclass
class Engines:
    script: Script
    sessions: Sessions

    @asynccontextmanager
    async def ask(self, name: str, body: dict[str, object]) -> AsyncIterator[Answer]:
        await self.sessions.one(name)
        self.script.asked.append(body)
        self.script.asking += 1
        try:
            kind = "text/event-stream; charset=utf-8" if body.get("stream") else "application/json"
            parts = self._parts() if body.get("stream") else _whole()
            yield Answer(200, kind, "r1", parts)
        finally:
            self.script.asking -= 1

    async def _parts(self) -> AsyncIterator[bytes]:
        yield EVENTS[0]
        if self.script.breaks_off:
            raise EngineError("the engine broke off")
        if self.script.endless:
            await trio.sleep_forever()
        for event in EVENTS[1:]:
            yield event

    async def timings(self, name: str, request_id: str) -> views.Timings:
        await self.sessions.one(name)
        if request_id != "r1":
            raise NotKnown(f"no timings are known of request {request_id!r}")
        return TIMINGS


async def _whole() -> AsyncIterator[bytes]:
    yield b'{"choices": []}'


@dataclass
class Hosts:
    script: Script
    offered: bool = True
    known: dict[str, views.Host] = field(default_factory=dict)

    def all(self) -> tuple[views.Host, ...]:
        return tuple(self.known.values())

    def one(self, host: str) -> views.Host:
        if host not in self.known:
            raise NotKnown(f"no host {host!r} was started from here")
        return self.known[host]

    async def start(self, wanted: views.NewHost) -> views.Host:
        self.script.step()
        if len(self.known) > 8:
            raise Busy("too many hosts")
        started = views.Host(
            id=f"h{len(self.known)}",
            name=wanted.name or "host",
            model=wanted.model,
            memory_bytes=wanted.memory_bytes,
            state="starting",
            started_at=1000.0,
        )
        self.known[started.id] = started
        return started

    async def stop(self, host: str) -> None:
        self.one(host)
        del self.known[host]

    async def pause(self, host: str) -> views.Host:
        self.known[host] = self.one(host).model_copy(update={"state": "paused"})
        return self.known[host]

    async def resume(self, host: str) -> views.Host:
        self.known[host] = self.one(host).model_copy(update={"state": "ready"})
        return self.known[host]

    def log(self, host: str) -> tuple[str, ...]:
        self.one(host)
        return ("reading tiny", "hosting as alice")


@dataclass
class Machine:
    script: Script

    async def kv(self) -> views.Kv:
        self.script.step()
        return views.Kv(held_records=1, known_records=2, known_holders=3, figures={"used_tokens": 512.0})

    async def doctor(self) -> views.Doctor:
        self.script.step()
        check = views.Check(name="bubblewrap", status="fail", detail="not there", remedy="apt install it")
        return views.Doctor(ok=False, checks=[check])


def scripted(script: Script | None = None) -> Sources:
    """One session, one peer, no host."""
    script = script or Script()
    sessions = Sessions(script)
    return Sources(Swarms(script), sessions, Engines(script, sessions), Hosts(script), Machine(script))


def rules(port: int = 8643, token: str | None = None) -> Rules:
    return Rules(hosts_of(LOOPBACK, port), token, f"edgellm-console-{port}", "cookie-value" if token else "")
