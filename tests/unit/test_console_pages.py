"""The console's pages over sources that say what their script says: what is drawn, what forms do, and that names stay names."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from starlette.responses import Response

from edgellm.console import forms, pages, views
from edgellm.console.app import create_app
from edgellm.console.guard import LOOPBACK, Rules, hosts_of
from edgellm.console.pipeline import pipeline
from edgellm.console.sources import Answer, Conflict, Events, NotKnown, NotOffered, Sources
from edgellm.console.timeline import MOST_TICKS, seconds, timeline
from edgellm.errors import DiscoveryError, UsageError

ORIGIN = "http://127.0.0.1:8643"
HOSTILE = "<script>alert(1)</script>"
HOSTILE_MODEL = "\"><img src=x onerror='alert(2)'>"


def a_peer(name: str, *, peer: str = "12D3KooWpeer", model: str = "tiny", leased: bool = False) -> views.Peer:
    device = views.Device(
        id="0",
        kind="cpu",
        name="CPU & co",
        free_memory_bytes=1 << 30,
        bandwidth_bytes_s=4e10,
        flops=1e12,
        free=not leased,
    )
    return views.Peer(
        peer=peer,
        name=name,
        addresses=[],
        engine=views.Engine(backend="vllm", device_kind="cpu", versions={}),
        devices=[device],
        free_memory_bytes=0 if leased else 1 << 30,
        free_leases=0 if leased else 1,
        draining=False,
        fabrics=["overlay"],
        models=[views.Offer(name=model, digest="d1", layers=4, weights_bytes=10, max_context=512)],
        round_trip_s=0.0012,
        expires_at=2e9,
    )


def a_swarm(*peers: views.Peer, **also: object) -> views.Swarm:
    models = [
        views.ModelEntry(
            **offer.model_dump(),
            hosts=[peer.name],
            free_memory_bytes=peer.free_memory_bytes,
        )
        for peer in peers
        for offer in peer.models
    ]
    told = {"refused": [], "seen_at": 1.7e9} | also
    return views.Swarm.model_validate({"peers": list(peers), "models": models, **told})


def a_session(name: str = "amber", state: str = "ready", **also: object) -> views.Session:
    stages = [
        views.Stage(stage=0, peer="p1", name="alice", first_layer=0, end_layer=3, latency_s=0.0012),
        views.Stage(stage=1, peer="p2", name=HOSTILE, first_layer=3, end_layer=4),
    ]
    ready = {"stages": stages, "tensor_parallel": 2, "endpoint": "http://127.0.0.1:9/v1", "context": 512}
    told = {"name": name, "model": HOSTILE_MODEL, "state": state} | (ready if state == "ready" else {}) | also
    return views.Session.model_validate(told)


TIMINGS = views.Timings(
    request_id="r1",
    prompt_tokens=10,
    output_tokens=4,
    queue_s=0.1,
    prefill_s=0.4,
    decode_s=0.5,
    token_s=[0.5, 0.6, 0.9, 1.0],
    stages=[
        views.StageTiming(stage=0, name="alice", first_layer=0, end_layer=3, prefill_s=0.2, decode_s=0.2),
        views.StageTiming(stage=1, name=HOSTILE, prefill_s=0.1, decode_s=0.1),
    ],
    network_s=views.NetworkTiming(prefill_s=0.1, decode_s=0.2),
)


async def _no_events() -> AsyncIterator[object]:
    return
    yield


@dataclass
class Swarm:
    seen: views.Swarm = field(default_factory=lambda: a_swarm(a_peer("alice")))
    slow: bool = False
    broken: bool = False

    async def current(self) -> views.Swarm:
        if self.broken:
            raise DiscoveryError("no bootstrap peer answers", remedy="start one")
        if self.slow:
            await trio.sleep_forever()
        return self.seen

    def watch(self) -> Events:
        raise NotImplementedError


@dataclass
class Sessions:
    open_ones: dict[str, views.Session] = field(default_factory=dict)
    asked: list[views.NewSession] = field(default_factory=list)
    swapped: list[tuple[str, str]] = field(default_factory=list)

    async def all(self) -> tuple[views.Session, ...]:
        return tuple(self.open_ones.values())

    async def one(self, name: str) -> views.Session:
        if name not in self.open_ones:
            raise NotKnown(f"there is no session named {name!r}", remedy="sessions: none is open")
        return self.open_ones[name]

    async def open(self, wanted: views.NewSession) -> views.Session:
        self.asked.append(wanted)
        if wanted.name in self.open_ones:
            raise Conflict(f"there is a session named {wanted.name!r} already", remedy="choose another")
        opened = a_session(wanted.name or "birch", "starting")
        self.open_ones[opened.name] = opened
        return opened

    async def close(self, name: str) -> None:
        await self.one(name)
        del self.open_ones[name]

    async def swap(self, name: str, model: str) -> views.Session:
        if model == "no":
            raise NotOffered("nobody hosts 'no'", remedy="choose another")
        self.swapped.append((name, model))
        return await self.one(name)

    def watch(self, name: str) -> Events:
        raise NotImplementedError


class Engines:
    def ask(self, name: str, body: dict[str, object]) -> AbstractAsyncContextManager[Answer]:
        raise NotImplementedError

    async def timings(self, name: str, request_id: str) -> views.Timings:
        if request_id == "none":
            return views.Timings(request_id="none")
        if request_id != "r1":
            raise NotKnown("the engine does not know that answer")
        return TIMINGS


@dataclass
class Hosts:
    offered: bool = True
    started: list[views.NewHost] = field(default_factory=list)
    running: list[views.Host] = field(default_factory=list)

    def all(self) -> tuple[views.Host, ...]:
        return tuple(self.running)

    def one(self, host: str) -> views.Host:
        raise NotImplementedError

    async def start(self, wanted: views.NewHost) -> views.Host:
        self.started.append(wanted)
        if wanted.model == "nowhere":
            raise UsageError("there is no model 'nowhere'", remedy="give a directory")
        host = views.Host(
            id="h1",
            name=wanted.name,
            model=wanted.model,
            memory_bytes=wanted.memory_bytes,
            state="starting",
            started_at=1.7e9,
        )
        self.running.append(host)
        return host

    async def stop(self, host: str) -> None:
        self.running = [one for one in self.running if one.id != host]

    async def pause(self, host: str) -> views.Host:
        self.running = [one.model_copy(update={"state": "paused"}) for one in self.running]
        return self.running[0]

    async def resume(self, host: str) -> views.Host:
        self.running = [one.model_copy(update={"state": "ready"}) for one in self.running]
        return self.running[0]

    def log(self, host: str) -> tuple[str, ...]:
        return (HOSTILE,)


class Machine:
    async def kv(self) -> views.Kv:
        return views.Kv(held_records=3, known_records=5, known_holders=1, figures={"sent_bytes": 7.0})

    async def doctor(self) -> views.Doctor:
        check = views.Check(
            name="nft", status="fail", detail="it is missing", remedy="apt-get install nftables"
        )
        return views.Doctor(ok=False, checks=[check])


@dataclass
class Console:
    """A console whose sources a test sets, and a browser without scripts in front of it."""

    swarm: Swarm = field(default_factory=Swarm)
    sessions: Sessions = field(default_factory=Sessions)
    hosts: Hosts = field(default_factory=Hosts)
    own: str | None = None

    @asynccontextmanager
    async def browser(self) -> AsyncIterator[httpx.AsyncClient]:
        sources = Sources(self.swarm, self.sessions, Engines(), self.hosts, Machine(), self.own)
        app = create_app(sources, Rules(hosts_of(LOOPBACK, 8643)))
        headers = {"accept": "text/html", "origin": ORIGIN, "sec-fetch-site": "same-origin"}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url=ORIGIN, headers=headers
        ) as client:
            yield client

    async def get(self, path: str, status: int = 200) -> str:
        async with self.browser() as browser:
            answer = await browser.get(path)
        assert answer.status_code == status, answer.text
        return answer.text

    async def post(self, path: str, **fields: str) -> httpx.Response:
        async with self.browser() as browser:
            # Browsers name the type of an empty form, too.
            form = {"content-type": "application/x-www-form-urlencoded"}
            return await browser.post(path, data=fields, headers=form)


class Elements(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.words += " "

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def is_harmless(page: str) -> bool:
    """No script but ours, no element or attribute that a name has made."""
    elements = Elements(page)
    scripts = elements.all("script")
    ours = all((script.get("src") or "").startswith("/console/static/") for script in scripts)
    handlers = [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    styles = [attributes["style"] for _, attributes in elements.found if "style" in attributes]
    return ours and not handlers and not styles and not elements.all("img")


# --- names of strangers ------------------------------------------------------------------------------------------


async def test_names_from_the_swarm_are_words_and_nothing_else() -> None:
    happened = views.Happening(at=1.7e9, what="joined", peer="p9", name=HOSTILE)
    swarm = a_swarm(
        a_peer(HOSTILE, model=HOSTILE_MODEL),
        recent=[happened],
        refused=[views.Refused(reason=HOSTILE, count=1)],
        problem=views.Problem(message=HOSTILE, remedy=HOSTILE, type="network"),
        join=[HOSTILE],
    )
    failure = views.Problem(message=HOSTILE, remedy=HOSTILE, type="plan")
    opened = {
        "amber": a_session(),
        "birch": a_session("birch", "failed", failure=failure),
        "cedar": a_session("cedar", "starting", detail=HOSTILE),
    }
    host = views.Host(
        id="h1",
        name=HOSTILE,
        model=HOSTILE_MODEL,
        memory_bytes=1,
        state="starting",
        detail=HOSTILE,
        started_at=1,
    )
    console = Console(Swarm(swarm), Sessions(opened), Hosts(running=[host]))
    for path in (
        "/",
        "/console/sessions/amber",
        "/console/sessions/birch",
        "/console/sessions/cedar",
        "/console/sessions/amber/answers/r1",
    ):
        page = await console.get(path)
        assert is_harmless(page), path
        assert HOSTILE in Elements(page).words, path


def test_scripts_make_no_markup_of_words() -> None:
    for script in (Path(pages.__file__).parent / "static").glob("*.js"):
        found = re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setHTML",
            script.read_text(),
        )
        assert found is None, script.name


async def test_everything_comes_from_here() -> None:
    console = Console(sessions=Sessions({"amber": a_session()}))
    for path in ("/", "/console/sessions/amber", "/console/machine", "/login"):
        elements = Elements(await console.get(path))
        for _, attributes in elements.found:
            for name in ("src", "href", "action"):
                value = attributes.get(name) or "/"
                assert value.startswith(("/", "#")), value
                assert not value.startswith("//"), value
        async with console.browser() as browser:
            for attributes in (*elements.all("script"), *elements.all("link")):
                loaded = await browser.get(attributes.get("src") or attributes["href"] or "")
                assert loaded.status_code == 200
                assert loaded.headers["content-security-policy"].startswith("default-src 'none'")


# --- what is shown -------------------------------------------------------------------------------------------------


async def test_the_swarm_its_load_and_who_came() -> None:
    happened = [
        views.Happening(at=1.7e9, what="joined", peer="p1", name="alice"),
        views.Happening(at=1.7e9 + 1, what="left", peer="p2", name="bob"),
    ]
    swarm = a_swarm(a_peer("alice", peer="p1"), a_peer("carol", peer="p3", leased=True), recent=happened)
    words = " ".join(Elements(await Console(Swarm(swarm)).get("/")).words.split())
    assert "Hosts 2" in words
    assert "Devices 2 1 leased" in words
    assert "alice joined" in words
    assert words.index("bob left") < words.index("alice joined")
    assert "full" in words


async def test_versions_of_one_model_are_told_apart() -> None:
    other = a_peer("bob", peer="p2")
    other = other.model_copy(update={"models": [other.models[0].model_copy(update={"digest": "d2"})]})
    page = Elements(await Console(Swarm(a_swarm(a_peer("alice"), other))).get("/"))
    assert [field["value"] for field in page.all("input") if field.get("type") == "hidden"] == ["d1", "d2"]


async def test_a_swarm_that_cannot_be_seen_is_said_and_takes_nothing_else_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = Elements(await Console(Swarm(broken=True), Sessions({"amber": a_session()})).get("/")).words
    assert "no bootstrap peer answers" in words
    assert "amber" in words
    monkeypatch.setattr(pages, "FIRST_LOOK_S", 0.01)
    assert "Looking for hosts" in Elements(await Console(Swarm(slow=True)).get("/")).words


async def test_a_session_shows_its_pipeline() -> None:
    page = await Console(sessions=Sessions({"amber": a_session()})).get("/console/sessions/amber")
    words = " ".join(Elements(page).words.split())
    assert f"Each token passes alice with layers 0–2, then {HOSTILE} with layers 3" in words
    assert "1.2 ms from here" in words
    assert words.count("cpu 0") + words.count("device 0") == 2
    assert "http://127.0.0.1:9/v1" in words


async def test_of_very_many_models_some_are_shown_and_the_rest_is_counted() -> None:
    offers = [a_peer("alice").models[0].model_copy(update={"name": f"m{number}"}) for number in range(10)]
    peer = a_peer("alice").model_copy(update={"models": offers})
    page = Elements(await Console(Swarm(a_swarm(peer, more_models=1000))).get("/"))
    assert "And 1000 more." in page.words
    assert "m7 and 2 more" in " ".join(page.words.split())
    assert "1010" in page.words


async def test_rendering_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def rendered(*arguments: Any, **shown: Any) -> Response:
        threads.append(threading.get_ident())
        return Response("a page")

    monkeypatch.setattr(pages, "rendered", rendered)
    await Console().get("/")
    assert threads != [threading.get_ident()]


async def test_a_page_of_a_sessions_daemon_is_that_session_and_starts_nothing() -> None:
    console = Console(sessions=Sessions({"amber": a_session()}), hosts=Hosts(offered=False), own="amber")
    first = Elements(await console.get("/"))
    assert first.all("main")[0]["data-page"] == "/"
    assert first.all("main")[0]["data-session"] == "amber"
    swarm = Elements(await console.get("/console/swarm"))
    assert [form["action"] for form in swarm.all("form")] == []


async def test_what_is_not_there_is_a_page_that_says_so() -> None:
    words = Elements(await Console().get("/console/sessions/nobody", 404)).words
    assert "there is no session named 'nobody'" in words
    await Console().get("/console/static/..%2fpages.py", 404)
    await Console().get("/console/static/nothing.js", 404)


async def test_this_machine() -> None:
    words = Elements(await Console().get("/console/machine")).words
    assert "apt-get install nftables" in words
    assert "sent bytes" in words


async def test_elements_have_names_and_ids_are_unique() -> None:
    console = Console(sessions=Sessions({"amber": a_session()}))
    for path in ("/", "/console/sessions/amber", "/console/sessions/amber/answers/r1", "/console/machine"):
        elements = Elements(await console.get(path))
        ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
        assert len(ids) == len(set(ids)), path
        labels = {label.get("for") for label in elements.all("label")}
        fields = [*elements.all("input"), *elements.all("textarea"), *elements.all("select")]
        assert {field.get("id") for field in fields if field.get("type") != "hidden"} <= labels, path
        for _, attributes in elements.found:
            named = (
                (attributes.get("aria-labelledby") or "") + " " + (attributes.get("aria-describedby") or "")
            )
            assert set(named.split()) <= set(ids), path
        assert len(elements.all("h1")) == len(elements.all("main")) == 1


# --- forms ---------------------------------------------------------------------------------------------------------


async def test_a_form_opens_a_session() -> None:
    console = Console()
    answer = await console.post(
        "/console/sessions", model="tiny", name="birch", idle_minutes="2", pp="2", peers=" alice, bob "
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/sessions/birch")
    wanted = views.NewSession(model="tiny", name="birch", idle_s=120, pp=2, peers=["alice", "bob"])
    assert console.sessions.asked == [wanted]
    again = await console.post("/console/sessions", model="tiny", name="birch")
    assert again.status_code == 409
    assert "there is a session named" in Elements(again.text).words


async def test_a_form_with_faults_comes_back_with_what_was_written() -> None:
    console = Console()
    answer = await console.post("/console/sessions", model="tiny", name="No Name", pp="two", idle_minutes="x")
    assert answer.status_code == 422
    fields = {field.get("name"): field for field in Elements(answer.text).all("input") if field.get("id")}
    assert fields["idle_minutes"]["aria-invalid"] == "true"
    answer = await console.post("/console/sessions", model="tiny", name="No Name", pp="two")
    fields = {
        field.get("id"): field for field in Elements(answer.text).all("input") if "aria-invalid" in field
    }
    assert {field: values["value"] for field, values in fields.items()} == {
        "order-name": "No Name",
        "order-pp": "two",
    }
    few = await console.post("/console/sessions", model="tiny", sequences="0")
    assert "must be greater than or equal to 1." in Elements(few.text).words
    assert console.sessions.asked == []


async def test_a_host_with_a_memory_cap_is_started_and_stopped() -> None:
    console = Console()
    answer = await console.post("/console/hosts", model="/models/tiny", memory_bytes="512MiB", name="dora")
    assert answer.status_code == 303
    assert console.hosts.started == [views.NewHost(model="/models/tiny", memory_bytes=512 << 20, name="dora")]
    assert "at most 512 MiB" in Elements(await console.get("/")).words
    wrong = await console.post("/console/hosts", model="tiny", memory_bytes="much")
    assert wrong.status_code == 422
    assert "no amount of memory" in Elements(wrong.text).words
    refused = await console.post("/console/hosts", model="nowhere", memory_bytes="1GiB")
    assert refused.status_code == 400
    assert "there is no model 'nowhere'" in Elements(refused.text).words
    assert "Pause" not in Elements(await console.get("/")).words
    await console.hosts.resume("h1")
    assert "Pause" in Elements(await console.get("/")).words
    assert (await console.post("/console/hosts/h1/pause")).status_code == 303
    assert "Resume" in Elements(await console.get("/")).words
    assert (await console.post("/console/hosts/h1/resume")).status_code == 303
    assert console.hosts.running[0].state == "ready"
    assert (await console.post("/console/hosts/h1/stop")).status_code == 303
    assert console.hosts.running == []


async def test_sessions_are_swapped_and_closed() -> None:
    console = Console(sessions=Sessions({"amber": a_session()}))
    swapped = await console.post("/console/sessions/amber/swap", model="other")
    assert (swapped.status_code, console.sessions.swapped) == (303, [("amber", "other")])
    refused = await console.post("/console/sessions/amber/swap", model="no")
    assert refused.status_code == 409
    assert "nobody hosts 'no'" in Elements(refused.text).words
    nothing = await console.post("/console/sessions/amber/swap", model="")
    assert nothing.status_code == 422
    assert "the model's name must be filled in" in Elements(nothing.text).words
    closed = await console.post("/console/sessions/amber/close")
    assert (closed.status_code, closed.headers["location"]) == (303, "/")
    assert (await console.post("/console/sessions/amber/close")).status_code == 404


async def test_forms_of_other_pages_do_nothing() -> None:
    console = Console()
    form = {"content-type": "application/x-www-form-urlencoded"}
    async with console.browser() as browser:
        for headers in (
            {"origin": "http://evil.example"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
        ):
            answer = await browser.post(
                "/console/sessions", content=b"model=tiny", headers={**form, **headers}
            )
            assert answer.status_code == 403
        del browser.headers["origin"], browser.headers["sec-fetch-site"]
        assert (
            await browser.post("/console/sessions", content=b"model=tiny", headers=form)
        ).status_code == 415
    assert console.sessions.asked == []


@pytest.mark.parametrize("body", [b"\xff", b"&".join(b"a=%d" % n for n in range(99)), b"model=%FF"])
def test_bodies_that_are_no_forms(body: bytes) -> None:
    with pytest.raises(UsageError):
        forms.fields_of(body)


# --- where the time of an answer went ------------------------------------------------------------------------------


async def test_an_answers_times_are_drawn_and_tabled() -> None:
    console = Console()
    page = await console.get("/console/sessions/amber/answers/r1")
    words = " ".join(Elements(page).words.split())
    assert "1.00 s in all: 100 ms waiting for its turn, 400 ms reading the prompt and 500 ms writing" in words
    assert "Of the work, 33 % was network and scheduling." in words
    assert "alice layers 0–2 200 ms 200 ms" in words
    await console.get("/console/sessions/amber/answers/none", 404)
    await console.get("/console/sessions/amber/answers/r2", 404)


def test_bars_stand_where_their_time_was() -> None:
    drawn = timeline(TIMINGS)
    assert drawn is not None
    assert [(bar.label, round(bar.x), round(bar.width)) for bar in drawn.phases] == [
        ("waiting", 0, 10),
        ("prefill", 10, 40),
        ("decode", 50, 50),
    ]
    assert [(bar.kind, round(bar.x), round(bar.width)) for bar in drawn.hops] == [
        ("queue", 0, 10),
        ("stage", 10, 20),
        ("stage", 30, 10),
        ("network", 40, 10),
        ("stage", 50, 20),
        ("stage", 70, 10),
        ("network", 80, 20),
    ]
    assert [(round(tick.x), round(tick.height), tick.first) for tick in drawn.ticks] == [
        (50, 100, True),
        (60, 33, False),
        (90, 100, False),
        (100, 33, False),
    ]
    assert drawn.longest_wait_s == pytest.approx(0.3)
    assert [mark.label for mark in drawn.marks] == ["0", "200 ms", "400 ms", "600 ms", "800 ms"]


def test_stages_that_computed_for_others_meanwhile_stay_within_their_phase() -> None:
    busy = [views.StageTiming(stage=number, name="a", decode_s=2.0) for number in range(2)]
    drawn = timeline(views.Timings(request_id="r", decode_s=1.0, stages=busy))
    assert drawn is not None
    assert sum(bar.width for bar in drawn.hops) == pytest.approx(100)


def test_stages_whose_times_are_not_known_are_said_to_be_so() -> None:
    stages = [views.StageTiming(stage=number, name="a") for number in range(2)]
    drawn = timeline(views.Timings(request_id="r", prefill_s=0.1, decode_s=1.0, stages=stages))
    assert drawn is not None
    assert (drawn.hops, drawn.keys) == ((), ())
    assert "How much of it each stage computed is not known." in drawn.sentence


def test_of_an_answer_that_was_stopped_decode_is_the_time_until_its_last_piece() -> None:
    drawn = timeline(TIMINGS.model_copy(update={"decode_s": None, "network_s": views.NetworkTiming()}))
    assert drawn is not None
    assert [(bar.label, round(bar.seconds, 3)) for bar in drawn.phases] == [
        ("waiting", 0.1),
        ("prefill", 0.4),
        ("decode", 0.5),
    ]
    assert [round(bar.seconds, 3) for bar in drawn.hops if "decode" in bar.label] == [0.2, 0.1]
    partly = TIMINGS.model_copy(update={"decode_s": None, "network_s": views.NetworkTiming(prefill_s=0.1)})
    drawn = timeline(partly)
    assert drawn is not None
    assert "network" not in drawn.sentence


def test_long_answers_have_as_many_ticks_as_can_be_seen() -> None:
    drawn = timeline(views.Timings(request_id="r", token_s=[0.01 * n for n in range(1, 5000)]))
    assert drawn is not None
    assert len(drawn.ticks) <= MOST_TICKS + 1
    assert len(drawn.gaps) == 4999
    assert all(0 <= tick.x <= 100 for tick in drawn.ticks)


def test_nothing_known_is_nothing_drawn() -> None:
    assert timeline(views.Timings(request_id="r")) is None
    only_tokens = timeline(views.Timings(request_id="r", token_s=[0.25]))
    assert only_tokens is not None
    assert (only_tokens.hops, only_tokens.usual_wait_s) == ((), None)


def test_stages_are_drawn_in_proportion_and_missing_hosts_are_marked() -> None:
    swarm = a_swarm(a_peer("alice", peer="p1"))
    drawn = pipeline(a_session(), swarm)
    assert drawn is not None
    assert [(node.layers, node.x, node.width, node.seen) for node in drawn.nodes] == [
        ("0–2", 0, 75, True),
        ("3", 75, 25, False),
    ]
    assert drawn.nodes[0].ranks == ("cpu 0", "cpu 1")
    unseen = pipeline(a_session(), None)
    assert unseen is not None
    assert all(node.seen for node in unseen.nodes)
    assert pipeline(a_session(state="starting"), swarm) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0004, "0.4 ms"), (0.0383, "38 ms"), (0.9999, "1.00 s"), (12.34, "12.3 s"), (75.2, "75 s")],
)
def test_durations_have_as_many_digits_as_matter(value: float, words: str) -> None:
    assert seconds(value) == words
