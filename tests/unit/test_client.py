"""The Python client against a scripted session: everything from the sockets up is real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import grpc
import psutil
import pytest
import torch
from transformers import BatchEncoding

import edgellm
from edgellm import (
    LLM,
    AsyncLLM,
    AsyncSwarm,
    DiscoveryError,
    DistributedModelForCausalLM,
    EngineError,
    Message,
    Piece,
    SamplingParams,
    SessionError,
    Swarm,
    UsageError,
)
from edgellm.client.connection import Stream
from edgellm.client.llm import MAX_AT_ONCE
from edgellm.client.options import order_of
from edgellm.client.prompts import chat_of, question_of, questions_of
from edgellm.client.results import Completion, Gathering
from edgellm.engine.question import question_to_wire
from edgellm.paths import default_paths
from edgellm.sessions.registry import Registry, SessionRecord, write_record
from edgellm.sessions.service import SessionService
from edgellm.sessions.serving import Serving, Slot
from edgellm.testing.scripted_engine import Script, scripted_engine
from edgellm.wire import session_pb2, session_pb2_grpc

TINY = Path(__file__).parents[2] / "models" / "tiny"
BACKENDS = ("asyncio", "trio")
FOUR = SamplingParams(max_tokens=4)
ENDLESS = SamplingParams(max_tokens=1_000_000)


class Daemon(session_pb2_grpc.SessionServicer):
    """A session's daemon that counts its uses."""

    def __init__(self, engine: Path) -> None:
        self.engine = engine
        self.model = "tiny"
        self.state = "ready"
        self.is_between_clusters = False
        self.uses = 0
        self.refuses = ""
        self._lock = threading.Lock()

    def Describe(
        self, request: session_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> session_pb2.Description:
        if self.is_between_clusters:
            return session_pb2.Description(name="amber", model=self.model, state=self.state)
        stage = session_pb2.StageDescription(peer="peer-a", name="alice", first_layer=0, end_layer=8)
        return session_pb2.Description(
            name="amber",
            model=self.model,
            digest=f"digest of {self.model}",
            state=self.state,
            stages=[stage],
            max_model_len=64,
        )

    def Use(
        self, request: session_pb2.UseRequest, context: grpc.ServicerContext
    ) -> Iterator[session_pb2.Engine]:
        if self.refuses:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, self.refuses)
        ended = threading.Event()
        if context.add_callback(ended.set):
            with self._lock:
                self.uses += 1
            try:
                yield session_pb2.Engine(
                    socket=str(self.engine), digest=f"digest of {self.model}", model=self.model
                )
                ended.wait(30)
            finally:
                with self._lock:
                    self.uses -= 1


class Session:
    def __init__(self, daemon: Daemon, script: Script) -> None:
        self.daemon = daemon
        self.script = script

    def wait_free(self) -> None:
        """Until nothing is asked any more."""
        deadline = time.monotonic() + 5
        while self.script.running or self.daemon.uses:
            assert time.monotonic() < deadline, "a request that nobody waits for goes on"
            time.sleep(0.01)

    def wait_running(self, count: int) -> None:
        deadline = time.monotonic() + 5
        while self.script.running != count:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    return tmp_path


@contextmanager
def opened_session(script: Script) -> Iterator[Session]:
    """An open session named amber, whose daemon is this process."""
    _, files = Registry.of(default_paths()).reserve("amber")
    write_record(files, SessionRecord("amber", "tiny", os.getpid(), psutil.Process().create_time(), "ready"))
    daemon = Daemon(files.directory / "engine.sock")
    server = grpc.server(ThreadPoolExecutor(80))
    session_pb2_grpc.add_SessionServicer_to_server(daemon, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{files.socket}")
    server.start()
    try:
        with scripted_engine(daemon.engine, script):
            yield Session(daemon, script)
    finally:
        server.stop(grace=0).wait(timeout=5)


@pytest.fixture
def session() -> Iterator[Session]:
    with opened_session(Script()) as session:
        yield session


@pytest.fixture
def slow_session() -> Iterator[Session]:
    with opened_session(Script(token_s=0.02)) as session:
        yield session


@pytest.fixture
def llm(session: Session) -> Iterator[LLM]:
    with LLM(session="amber") as llm:
        yield llm
    session.wait_free()


@pytest.fixture
def slow_llm(slow_session: Session) -> Iterator[LLM]:
    with LLM(session="amber") as llm:
        yield llm
    slow_session.wait_free()


def run(backend: str, work: Callable[[], Awaitable[None]]) -> None:
    anyio.run(work, backend=backend)


# What is public, and what it costs to import.


def test_the_public_names_are_these() -> None:
    errors = "DiscoveryError EdgeError EngineError HostLost LeaseError ModelError NetworkError PlanError"
    classes = "AsyncLLM AsyncStream AsyncSwarm AutoDistributedModelForCausalLM Completion DistributedModelForCausalLM Hop LLM"
    more = "Message Model Peer Piece SamplingParams SessionError SessionOptions Stream Swarm UsageError __version__"
    assert sorted(edgellm.__all__) == sorted(f"{errors} {classes} {more}".split())
    named = [name for name in edgellm.__all__ if name != "__version__"]
    assert [getattr(edgellm, name).__name__ for name in named] == named
    assert set(edgellm.__all__) <= set(dir(edgellm))
    with pytest.raises(AttributeError, match="has no attribute 'Llm'"):
        _ = edgellm.Llm


def test_programs_import_no_engine() -> None:
    program = (
        "import sys, edgellm\n"
        "assert not [name for name in sys.modules if name.startswith('edgellm.')]\n"
        "for name in edgellm.__all__: getattr(edgellm, name)\n"
        "heavy = {'vllm', 'ray', 'torch', 'transformers', 'libp2p', 'trio', 'fastapi', 'typer', 'rich'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Answers.


def test_an_answer_comes_piece_by_piece(session: Session, llm: LLM) -> None:
    pieces = list(llm.stream("why is it blue", FOUR))
    assert "".join(piece.text for piece in pieces) == "the sky is blue "
    assert [piece.token_ids for piece in pieces] == [(0,), (1,), (2,), (3,)]
    assert {piece.prompt_tokens for piece in pieces} == {4}
    assert [piece.finish_reason for piece in pieces] == ["", "", "", "length"]
    assert isinstance(pieces[0], Piece)


def test_a_session_describes_itself(session: Session, llm: LLM) -> None:
    assert (llm.session, llm.model, llm.context) == ("amber", "tiny", 64)
    assert [(hop.name, hop.first_layer, hop.end_layer) for hop in llm.route] == [("alice", 0, 8)]
    assert repr(llm) == "<LLM tiny, session amber>"


def test_a_swap_is_noticed_by_the_next_request(session: Session, llm: LLM) -> None:
    before = llm.digest
    session.daemon.model = "other"
    llm.chat("why", FOUR)
    assert (llm.model, llm.digest) == ("other", "digest of other")
    asked = len(session.script.requests)
    with pytest.raises(SessionError, match=r"has another model by now: other") as caught:
        llm.generate([[1, 2], [3]], FOUR, digest=before)
    assert caught.value.remedy
    with pytest.raises(SessionError, match="another model"):
        list(llm.stream([1, 2], FOUR, digest=before))
    assert len(session.script.requests) == asked, "the other model got none of it"
    assert len(llm.generate([[1, 2], [3]], FOUR, digest=llm.digest)) == 2


def test_the_daemon_says_which_model_answers() -> None:
    serving = Serving("tiny", idle_s=60)
    for model in ("tiny", "other"):
        cluster = SimpleNamespace(engine_socket=Path("/run/e"), plan=SimpleNamespace(digest=f"of {model}"))
        serving.use(Slot(model, cast(Any, SimpleNamespace(cluster=cluster))))
        service = SessionService(cast(Any, None), serving, cast(Any, None), lambda: None)
        context = SimpleNamespace(add_callback=lambda ended: True)
        use = service.Use(session_pb2.UseRequest(), cast(Any, context))
        assert next(use) == session_pb2.Engine(socket="/run/e", digest=f"of {model}", model=model)
        cast(Any, use).close()


def test_between_two_clusters_the_description_stays(session: Session, llm: LLM) -> None:
    session.daemon.model, session.daemon.is_between_clusters = "other", True
    llm.chat("why", FOUR)
    assert (llm.model, llm.context) == ("tiny", 64)
    session.daemon.is_between_clusters = False
    llm.chat("why", FOUR)
    assert (llm.model, llm.context) == ("other", 64)


def test_the_shape_of_transformers_stays_one_model(session: Session, llm: LLM) -> None:
    model = DistributedModelForCausalLM(llm)
    model.__dict__["_directory"] = TINY
    rows = torch.tensor([[5, 6]])
    assert model.generate(rows, max_new_tokens=4).shape == (1, 6)
    session.daemon.model = "other"
    for _ in range(2):
        with pytest.raises(SessionError, match="another model by now: other"):
            model.generate(rows, max_new_tokens=4)


def test_prompts_are_answered_at_once_and_in_order(slow_session: Session, slow_llm: LLM) -> None:
    prompts = [f"{'word ' * index}end" for index in range(20)]
    begun = time.monotonic()
    answers = slow_llm.generate(prompts, SamplingParams(max_tokens=10))
    assert time.monotonic() - begun < 20 * 10 * 0.02 / 2
    assert [answer.prompt_tokens for answer in answers] == list(range(1, 21))
    assert {answer.text for answer in answers} == {"the sky is blue because " * 2}
    assert 8 < slow_session.script.most_running <= 16  # the scripted engine's threads
    first = answers[0]
    assert (first.token_ids, first.finish_reason) == (tuple(range(10)), "length")
    assert 0.02 <= first.ttft_s < first.total_s
    assert first.decode_tok_s is not None
    assert 10 < first.decode_tok_s <= 51


def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch, slow_session: Session, slow_llm: LLM) -> None:
    assert MAX_AT_ONCE < 64, "a session takes no more, and says so"
    slow_llm._places = threading.BoundedSemaphore(3)
    assert len(slow_llm.generate(["why"] * 9, FOUR)) == 9
    assert slow_session.script.most_running == 3


def test_each_prompt_can_have_its_own_parameters(session: Session, llm: LLM) -> None:
    lengths = [3, 1, 2]
    params = [SamplingParams(max_tokens=length) for length in lengths]
    assert [len(answer.token_ids) for answer in llm.generate(["a", "b", "c"], params)] == lengths
    with pytest.raises(UsageError, match="2 prompts and 3 sampling parameters"):
        llm.generate(["a", "b"], params)
    assert llm.generate([]) == []


def test_a_chat_reaches_the_engine_as_messages(session: Session, llm: LLM) -> None:
    assert llm.chat("why is it blue", FOUR).text == "the sky is blue "
    llm.chat([Message("system", "be brief"), {"role": "user", "content": "why"}], FOUR)
    list(llm.stream([{"role": "user", "content": "how"}], FOUR))
    asked = [
        [(message.role, message.content) for message in request.chat.messages]
        for request in session.script.requests
    ]
    assert asked == [
        [("user", "why is it blue")],
        [("system", "be brief"), ("user", "why")],
        [("user", "how")],
    ]


def test_many_threads_ask_at_the_same_time(session: Session, llm: LLM) -> None:
    texts: list[str] = []

    def work() -> None:
        for _ in range(5):
            texts.append("".join(piece.text for piece in llm.stream("why", FOUR)))

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert texts == ["the sky is blue "] * 60


# Ends before the end.


@pytest.mark.parametrize("way", ["close", "with", "break", "forgotten"])
def test_an_answer_that_nobody_wants_is_ended(way: str, slow_session: Session, slow_llm: LLM) -> None:
    if way == "break":
        for _ in slow_llm.stream("why", ENDLESS):
            break
    else:
        stream: Stream | None = slow_llm.stream("why", ENDLESS)
        assert stream is not None
        next(stream)
        slow_session.wait_running(1)
        if way == "close":
            stream.close()
            assert list(stream) == []
        elif way == "with":
            with stream:
                pass
        stream = None
    slow_session.wait_free()


def test_another_thread_can_end_an_answer(slow_session: Session, slow_llm: LLM) -> None:
    stream = slow_llm.stream("why", ENDLESS)
    timer = threading.Timer(0.2, stream.close)
    timer.start()
    assert list(stream)
    timer.join()
    slow_session.wait_free()


@pytest.mark.parametrize("way", ["generate", "stream"])
def test_ctrl_c_ends_what_runs(way: str, slow_session: Session, slow_llm: LLM) -> None:
    # Whoever starts the tests in a shell's background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _interrupted(way, slow_llm)
    finally:
        signal.signal(signal.SIGINT, before)
    slow_session.wait_free()


def _interrupted(way: str, slow_llm: LLM) -> None:
    timer = threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        if way == "generate":
            slow_llm.generate(["why"] * 40, ENDLESS)
        list(slow_llm.stream("why", ENDLESS))


def test_a_stream_that_was_never_begun_asks_nothing(session: Session, llm: LLM) -> None:
    llm.stream("why", FOUR).close()
    assert session.script.requests == []


def test_closing_ends_what_runs(slow_session: Session) -> None:
    llm = LLM(session="amber")
    stream = llm.stream("why", ENDLESS)
    next(stream)
    llm.close()
    with pytest.raises(SessionError, match="given up"):
        list(stream)
    slow_session.wait_free()
    llm.close()
    assert repr(llm).endswith("closed>")
    with pytest.raises(SessionError, match="is closed"):
        llm.chat("why")


# What goes wrong.


def test_a_prompt_that_fails_ends_the_batch_and_is_named(slow_session: Session, slow_llm: LLM) -> None:
    begun = time.monotonic()
    with pytest.raises(UsageError, match=r"^prompt 2 of 3: the prompt has 99 tokens"):
        slow_llm.generate(["why", "word " * 99, "how"], ENDLESS)
    assert time.monotonic() - begun < 5
    slow_session.wait_free()
    with pytest.raises(UsageError, match=r"^the prompt has 99 tokens"):
        slow_llm.generate("word " * 99, FOUR)
    with pytest.raises(UsageError, match=r"^prompt 1 of 2: the prompt is empty"):
        slow_llm.generate([" ", "how"])


def test_a_busy_session_says_so(session: Session, llm: LLM) -> None:
    session.daemon.refuses = "it answers 64 questions already"
    with pytest.raises(SessionError, match="busy: it answers 64") as caught:
        llm.chat("why")
    assert caught.value.remedy


def test_an_answer_that_takes_too_long(slow_session: Session) -> None:
    with LLM(session="amber", timeout_s=0.5) as llm, pytest.raises(EngineError, match="in time"):
        llm.chat("why", ENDLESS)
    slow_session.wait_free()


def test_sessions_that_cannot_be_asked(session: Session) -> None:
    with pytest.raises(SessionError, match="no session named 'nobody'"):
        LLM(session="nobody")
    session.daemon.state = "starting"
    with pytest.raises(SessionError, match="still starting"):
        LLM(session="amber")


def test_a_session_that_broke_tells_why(session: Session, llm: LLM) -> None:
    files = Registry.of(default_paths()).files("amber")
    record = SessionRecord(
        "amber", "tiny", 1, 0.0, "failed", "host bob fell silent", "ask again", 1, "HostLost"
    )
    write_record(files, record)
    session.daemon.engine = files.directory / "nobody.sock"
    with pytest.raises(edgellm.HostLost, match="host bob fell silent"):
        llm.chat("why")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "LLM needs either a model or session="),
        ({"model": "tiny", "session": "amber"}, "LLM needs either"),
        ({"model": "tiny", "bootsrap": []}, "LLM takes no bootsrap"),
        ({"session": "amber", "min_tok_s": 5}, "min_tok_s cannot be changed"),
        ({"model": "tiny", "bootstrap": "/ip4/1.2.3.4/tcp/1/p2p/Q"}, "bootstrap must be a list"),
        ({"model": "tiny"}, "no peer of the swarm is known"),
        ({"model": "tiny", "mdns": True, "max_load": 80}, "max_load must be from 0 to 1, not 80"),
        ({"model": "tiny", "mdns": True, "min_tok_s": "5"}, "min_tok_s must be 0 or more"),
        ({"model": "tiny", "mdns": True, "min_tok_s": float("inf")}, "0 or more and finite, not inf"),
        (
            {"model": "tiny", "mdns": True, "idle_s": float("inf")},
            "idle_s must be from 0 to 315360000, not inf",
        ),
        ({"model": "tiny", "mdns": True, "idle_s": float("nan")}, "idle_s must be"),
        ({"model": "tiny", "mdns": True, "idle_s": 10**400}, "idle_s must be"),
        ({"model": "tiny", "mdns": True, "tp": 0}, "tp must be a whole number from 1 on"),
        ({"model": "tiny", "mdns": True, "network": "udp"}, "network cannot be 'udp'"),
        ({"model": "tiny", "mdns": True, "network": "direct", "kv_scope": "swarm"}, "shares no KV cache"),
        ({"model": "tiny", "mdns": True, "api_key": "a b"}, "an API key"),
        ({"session": "amber", "timeout_s": 0}, "timeout_s must be above 0"),
        ({"session": "amber", "timeout_s": float("inf")}, "timeout_s must be from 0 to 315360000"),
        ({"model": "tiny", "mdns": True, "name": "A"}, "cannot be a session's name"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str, session: Session) -> None:
    with pytest.raises(UsageError, match=message):
        LLM(**options)
    assert Registry.of(default_paths()).names() == ("amber",), "nothing is left of it"


def test_options_reach_the_daemon() -> None:
    order = order_of(
        "tiny",
        {
            "min_tok_s": 5,
            "max_load": 0.8,
            "spot_check": 0.5,
            "tp": 2,
            "peers": ["alice"],
            "kv_scope": "swarm",
            "idle_s": 60,
        },
        name="amber",
        directory="/run/amber",
        bootstrap=("/ip4/1.2.3.4/tcp/1/p2p/Q",),
        owner=(7, 1.5),
    )
    assert order.spot_check == 0.5
    assert (order.min_tok_s, order.max_load, order.tensor_parallel, order.peers) == (5, 0.8, 2, ("alice",))
    assert (order.kv_scope, order.idle_s, order.owner_pid, order.owner_started) == ("swarm", 60, 7, 1.5)
    assert order.bootstrap == ("/ip4/1.2.3.4/tcp/1/p2p/Q",)


NOBODY = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWLRPJAA5o6MpFVHcYGkTMLKXFYqMWbeGZsqLTBDWHRk1d"


def test_what_stops_the_daemon_is_raised_here_as_what_it_is() -> None:
    told: list[str] = []
    with pytest.raises(DiscoveryError, match="bootstrap") as caught:
        LLM("tiny", bootstrap=[NOBODY], on_progress=lambda line: told.append(line.phase))
    assert caught.value.remedy
    assert Registry.of(default_paths()).names() == ()


@pytest.mark.parametrize("backend", BACKENDS)
def test_opening_can_be_cancelled(backend: str) -> None:
    async def work() -> None:
        with anyio.move_on_after(0.3) as scope:
            async with AsyncLLM("tiny", bootstrap=[NOBODY]):
                raise AssertionError
        assert scope.cancelled_caught

    run(backend, work)
    assert Registry.of(default_paths()).names() == ()


# The same under an event loop.


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_in_an_event_loop(backend: str, slow_session: Session) -> None:
    async def work() -> None:
        async with AsyncLLM(session="amber") as llm:
            assert (llm.session, llm.model, llm.context) == ("amber", "tiny", 64)
            pieces = [piece async for piece in llm.stream("why is it", FOUR)]
            assert "".join(piece.text for piece in pieces) == "the sky is blue "
            begun = time.monotonic()
            answers = await llm.generate(["a", "b c", "d e f"] * 4, SamplingParams(max_tokens=10))
            assert time.monotonic() - begun < 12 * 10 * 0.02 / 2
            assert [answer.prompt_tokens for answer in answers] == [1, 2, 3] * 4
            assert (await llm.chat("why", FOUR)).text == "the sky is blue "
            before, slow_session.daemon.model = llm.digest, "other"
            with pytest.raises(SessionError, match="another model by now: other"):
                await llm.generate([[1]], FOUR, digest=before)
            with pytest.raises(SessionError, match="another model by now: other"):
                await anext(llm.stream([1], FOUR, digest=before))
            assert (llm.model, llm.digest) == ("other", "digest of other")
        with pytest.raises(SessionError, match="is closed"):
            llm.stream("why")

    run(backend, work)
    slow_session.wait_free()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", ["cancel", "aclose", "with", "break", "chat"])
def test_in_an_event_loop_an_answer_that_nobody_wants_is_ended(
    way: str, backend: str, slow_session: Session
) -> None:
    async def work() -> None:
        async with AsyncLLM(session="amber") as llm:
            if way in ("cancel", "chat"):
                with anyio.move_on_after(0.2):
                    if way == "chat":
                        await llm.chat("why", ENDLESS)
                    async for _ in llm.stream("why", ENDLESS):
                        pass
            elif way == "break":
                async for _ in llm.stream("why", ENDLESS):
                    break
            else:
                stream = llm.stream("why", ENDLESS)
                await anext(stream)
                if way == "aclose":
                    await stream.aclose()
                    assert [piece async for piece in stream] == []
                else:
                    async with stream:
                        pass
            await anyio.to_thread.run_sync(slow_session.wait_free)

    run(backend, work)


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_an_event_loop_a_prompt_that_fails_ends_the_batch(backend: str, slow_session: Session) -> None:
    async def work() -> None:
        async with AsyncLLM(session="amber") as llm:
            with pytest.raises(UsageError, match=r"^prompt 2 of 3: the prompt has 99 tokens"):
                await llm.generate(["why", "word " * 99, "how"], ENDLESS)
            await anyio.to_thread.run_sync(slow_session.wait_free)
            with anyio.move_on_after(0.2):
                await llm.generate(["why"] * 6, ENDLESS)
            await anyio.to_thread.run_sync(slow_session.wait_free)

    run(backend, work)


def test_an_async_llm_has_to_be_opened(session: Session) -> None:
    llm = AsyncLLM(session="amber")
    assert repr(llm) == "<AsyncLLM amber, not open>"
    with pytest.raises(UsageError, match="not open yet"):
        llm.stream("why")


# Looking at a swarm.


def test_a_swarm_that_cannot_be_reached() -> None:
    with pytest.raises(DiscoveryError, match="bootstrap"):
        Swarm([NOBODY]).peers()
    with pytest.raises(UsageError, match="no peer of the swarm is known"):
        Swarm().models()
    with pytest.raises(UsageError, match="bootstrap must be a list"):
        Swarm(NOBODY)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_swarm_in_an_event_loop(backend: str) -> None:
    async def work() -> None:
        with pytest.raises(DiscoveryError):
            await AsyncSwarm([NOBODY]).peers()
        with pytest.raises(DiscoveryError):
            Swarm([NOBODY]).peers()
        begun = time.monotonic()
        with anyio.move_on_after(0.2):
            await AsyncSwarm(mdns=True).peers()
        assert time.monotonic() - begun < 5

    run(backend, work)


# Parameters and prompts.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be a whole number from 1 on, not 0"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -1}, "temperature must be between 0 and 2, not -1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, not 0"),
        ({"top_p": "1"}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": -1}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop_token_ids": [-1]}, "a stop token"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ],
)
def test_sampling_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingParams(**wrong)


def test_all_of_sampling_reaches_the_engine() -> None:
    params = SamplingParams(
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=cast("tuple[str, ...]", "\n"),
        ignore_eos=True,
        top_k=40,
        min_p=0.05,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        stop_token_ids=(1, 2),
    )
    sent = question_to_wire(question_of([5, 6], params), "id")
    assert list(sent.tokens.ids) == [5, 6]
    sampling = sent.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (3, 0.5, 0.9, 7)
    assert (list(sampling.stop), sampling.ignore_eos, sampling.top_k) == (["\n"], True, 40)
    assert (sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty) == (0.05, 0.5, -0.5)
    assert (sampling.repetition_penalty, list(sampling.stop_token_ids)) == (1.5, [1, 2])


def test_what_a_prompt_may_be() -> None:
    assert question_of(" a ", None).text == " a "
    assert question_of((1, 2), None).token_ids == (1, 2)
    assert question_of(torch.tensor([1, 2]), None).token_ids == (1, 2)
    assert question_of([{"role": "user", "content": "a"}], None).messages == (Message("user", "a"),)
    assert chat_of("a", None).messages == (Message("user", "a"),)
    assert [question.text for question in questions_of("a", None)] == ["a"]
    assert [question.token_ids for question in questions_of([1, 2], None)] == [(1, 2)]
    assert [question.token_ids for question in questions_of([[1], [2, 3]], None)] == [(1,), (2, 3)]
    tensor = cast(Any, torch.tensor([[1, 2], [3, 4]]))
    assert [question.token_ids for question in questions_of(tensor, None)] == [(1, 2), (3, 4)]
    assert [question.token_ids for question in questions_of(tensor[0], None)] == [(1, 2)]
    messages = [{"role": "user", "content": "a"}]
    assert len(questions_of(messages, None)) == 1
    assert len(questions_of([messages, messages, "b"], None)) == 3


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " \n",
        [],
        [-1],
        [1.5],
        [1 << 32],
        ["a", 1],
        5,
        None,
        [{"role": "user"}],
        [{"role": "", "content": "a"}],
        [{"role": "user", "content": ["a"]}],
        [{"role": "user", "content": "a", "tool_calls": []}],
        [{"role": "user", "content": "a"}, 5],
        {1: "a", 2: "b"},
        {1, 2},
        b"ab",
        bytearray(b"ab"),
        BatchEncoding({"input_ids": [1, 2]}),
    ],
)
def test_what_is_no_prompt(prompt: Any) -> None:
    with pytest.raises(UsageError) as caught:
        question_of(prompt, None)
    assert caught.value.remedy


@pytest.mark.parametrize("prompts", [{"a": 1}, {"a"}, b"ab", BatchEncoding({"input_ids": [[1, 2]]})])
def test_what_are_no_prompts(prompts: Any) -> None:
    with pytest.raises(UsageError, match="is no prompt"):
        questions_of(prompts, None)


def test_parameters_of_others_are_refused() -> None:
    with pytest.raises(UsageError, match="dict is no SamplingParams"):
        question_of("a", cast(Any, {"max_tokens": 3}))


def test_figures_of_an_answer() -> None:
    answer = Gathering(begun=10.0)
    answer.add(Piece((), "", 5), 10.5)
    answer.add(Piece((1, 2), "ab", 5, cached_prompt_tokens=4), 11.0)
    answer.add(Piece((3,), "c", 5), 11.5)
    answer.add(Piece((4,), "d", 5, "stop"), 12.0)
    assert answer.completion(12.5) == Completion("abcd", (1, 2, 3, 4), "stop", 5, 4, 1.0, 2.5, 2.0)
    assert Gathering(0.0).completion(1.0).decode_tok_s is None


# In the shape of transformers.


class FakeLLM:
    """Answers row i with i + 1 tokens, 100 * (i + 1) and on."""

    model = "tiny"
    digest = "digest of tiny"

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []
        self.params: list[SamplingParams] = []

    def model_directory(self) -> Path:
        return TINY

    def generate(
        self, prompts: list[list[int]], params: list[SamplingParams], *, digest: str
    ) -> list[Completion]:
        self.prompts, self.params = prompts, params
        return [
            Completion("", tuple(100 * (i + 1) + k for k in range(i + 1)), "stop", 1, 0, 0.1, 0.2, None)
            for i in range(len(prompts))
        ]

    @contextmanager
    def stream(self, prompt: list[int], params: SamplingParams, *, digest: str) -> Iterator[list[Piece]]:
        self.prompts, self.params = [prompt], [params]
        yield [Piece((7, 8), "ab", 1), Piece((9,), "c", 1, "stop")]


@pytest.fixture
def fake() -> FakeLLM:
    return FakeLLM()


@pytest.fixture
def model(fake: FakeLLM) -> DistributedModelForCausalLM:
    return DistributedModelForCausalLM(cast(LLM, fake))


def test_batches_are_taken_and_given_as_transformers_does(
    fake: FakeLLM, model: DistributedModelForCausalLM
) -> None:
    output = model.generate(
        torch.tensor([[0, 0, 5], [6, 7, 8]]),
        attention_mask=torch.tensor([[0, 0, 1], [1, 1, 1]]),
        max_new_tokens=4,
        pad_token_id=3,
    )
    assert fake.prompts == [[5], [6, 7, 8]]
    assert output.tolist() == [[0, 0, 5, 100, 3], [6, 7, 8, 200, 201]]
    assert output.dtype == torch.int64
    (params, _) = fake.params
    assert (params.max_tokens, params.temperature) == (4, 0.0)
    # Of the model's generation_config.json.
    assert (params.stop_token_ids, params.ignore_eos) == ((0,), True)


def test_without_a_mask_padding_is_what_is_no_end(fake: FakeLLM, model: DistributedModelForCausalLM) -> None:
    rows = torch.tensor([[3, 5], [6, 7]])
    model.generate(rows, pad_token_id=3)
    assert fake.prompts == [[5], [6, 7]]
    assert fake.params[0].max_tokens == 20
    model.generate(rows, pad_token_id=3, eos_token_id=[3, 4], max_length=10)
    assert fake.prompts == [[3, 5], [6, 7]]
    assert (fake.params[0].stop_token_ids, fake.params[0].max_tokens) == ((3, 4), 8)


@pytest.mark.parametrize(
    ("advised", "asked", "most"),
    [
        ({}, {}, 20),
        ({"max_length": 30}, {}, 28),
        ({"max_length": 30}, {"max_length": 12}, 10),
        ({"max_length": 30}, {"max_new_tokens": 5}, 5),
        ({"max_length": 30, "max_new_tokens": 7}, {}, 7),
    ],
)
def test_an_answer_is_as_long_as_the_model_advises(
    advised: dict[str, int],
    asked: dict[str, int],
    most: int,
    fake: FakeLLM,
    model: DistributedModelForCausalLM,
) -> None:
    model.generation_config.update(**advised)
    model.generate(torch.tensor([[5, 6]]), **cast(Any, asked))
    assert fake.params[0].max_tokens == most


def test_a_prompt_beyond_the_length_that_the_model_advises(model: DistributedModelForCausalLM) -> None:
    model.generation_config.max_length = 3
    with pytest.raises(UsageError, match="max_length=3 leaves no room after prompts of 3 tokens"):
        model.generate(torch.tensor([[5, 6, 7]]))


def test_sampling_gives_several_answers_by_several_seeds(
    fake: FakeLLM, model: DistributedModelForCausalLM
) -> None:
    output = model.generate(
        torch.tensor([[5], [6]]), do_sample=True, temperature=0.5, top_k=9, seed=3, num_return_sequences=2
    )
    assert fake.prompts == [[5], [5], [6], [6]]
    assert [params.seed for params in fake.params] == [3, 4, 5, 6]
    assert (fake.params[0].temperature, fake.params[0].top_k) == (0.5, 9)
    assert output[:, 0].tolist() == [5, 5, 6, 6]


def test_a_streamer_gets_prompt_and_tokens(fake: FakeLLM, model: DistributedModelForCausalLM) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.got: list[object] = []

        def put(self, value: torch.Tensor) -> None:
            self.got.append(value.tolist())

        def end(self) -> None:
            self.got.append("end")

    streamer = Streamer()
    output = model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, streamer=streamer)
    assert streamer.got == [[[5, 6]], [7], [8], [9], "end"]
    assert output.tolist() == [[5, 6, 7, 8, 9]]
    with pytest.raises(UsageError, match="a batch of one"):
        model.generate(torch.tensor([[5], [6]]), streamer=streamer)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_beams": 4, "use_cache": True}, "takes no num_beams, use_cache"),
        ({"input_ids": None}, "needs input_ids"),
        ({"input_ids": torch.tensor([1, 2])}, "needs input_ids of shape"),
        ({"attention_mask": torch.ones(1, 2)}, "attention_mask is of shape"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "padding is not on the left"),
        ({"attention_mask": torch.tensor([[0, 0, 0]])}, "the prompt is empty"),
        ({"temperature": 0.5}, "for do_sample=True"),
        ({"num_return_sequences": 2}, "needs do_sample=True"),
        ({"max_length": 3}, "leaves no room"),
        ({"max_length": 5, "max_new_tokens": 5}, "exclude each other"),
        ({"max_new_tokens": 0}, "max_tokens must be"),
    ],
)
def test_what_generate_refuses(
    wrong: dict[str, Any], message: str, model: DistributedModelForCausalLM
) -> None:
    with pytest.raises(UsageError, match=message):
        model.generate(**({"input_ids": torch.tensor([[1, 2, 3]])} | wrong))


def test_it_has_what_is_known_of_the_model(model: DistributedModelForCausalLM) -> None:
    assert model.config.num_hidden_layers == 8
    assert model.device == torch.device("cpu")
    assert model.name_or_path == "tiny"
    batch = model.tokenizer(["a", "a b c"], padding=True, return_tensors="pt")
    assert batch["attention_mask"][0].tolist()[0] == 0
