"""An engine behind the real gRPC protocol that says what its script says: for tests that need speed, not language.

Runs in threads of the test's own process; everything from the socket up is real.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from edgellm.wire import backend_pb2, backend_pb2_grpc


@dataclass
class Script:
    """What the engine does. Token i of every answer is the word `words[i % len(words)]` with the id i."""

    words: tuple[str, ...] = ("the ", "sky ", "is ", "blue ", "because ")
    load_s: float = 0.0
    token_s: float = 0.0
    max_model_len: int = 64
    fail_load: str = ""
    breaks: int = 0
    """So many loads lose a member as soon as they are done, and nobody hears of it."""
    misplace: bool = False
    """Report layers elsewhere than asked."""
    asked: list[int] = field(default_factory=list)
    """The most tokens that each question wanted."""
    prefill_hangs: bool = False
    """Questions for one token are never answered."""
    aborted: list[str] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    requests: list[backend_pb2.GenerateRequest] = field(default_factory=list)
    loads: list[backend_pb2.LoadRequest] = field(default_factory=list)
    liars: frozenset[str] = frozenset()
    """Peers in whose clusters every token comes out wrong."""
    apart: frozenset[str] = frozenset()
    """Peers that do not reach each other: no engine can be loaded over all of them."""
    members: dict[str, str] = field(default_factory=dict)
    """Peers of the last plan by their addresses; kept by `ScriptedMachine`."""
    suspends: int = 0


class ScriptedEngine(backend_pb2_grpc.BackendServicer):
    """Serves `proto/backend.proto` as `script` says. A token of the prompt is a word."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._lock = threading.Lock()
        self._loaded = False
        self._lies = False
        self._check_share = 0.0
        self._addresses: tuple[str, ...] = ()
        self._served = backend_pb2.ServedReply()
        self._going = threading.Event()
        """Not set while the engine is suspended."""
        self._going.set()

    def Load(
        self, request: backend_pb2.LoadRequest, context: grpc.ServicerContext
    ) -> Iterator[backend_pb2.LoadEvent]:
        if self._loaded and self._going.is_set():
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "an engine is loaded already: Unload first")
        yield backend_pb2.LoadEvent(phase=backend_pb2.Phase(name="import", detail="scripted"))
        self._script.loads.append(request)
        self._check_share = request.check_share
        self._addresses = tuple(stage.address for stage in request.stages)
        peers = {self._script.members.get(address, "") for address in self._addresses}
        self._lies = not self._script.liars.isdisjoint(peers)
        time.sleep(self._script.load_s)
        if self._script.apart and self._script.apart <= peers:
            context.abort(grpc.StatusCode.INTERNAL, "a rank ended")
        if self._script.fail_load:
            context.abort(grpc.StatusCode.INTERNAL, self._script.fail_load)
        ranks = [
            backend_pb2.RankPlacement(
                rank=index,
                address=stage.address,
                first_layer=stage.first_layer,
                end_layer=stage.end_layer - self._script.misplace,
            )
            for index, stage in enumerate(
                stage for stage in request.stages for _ in range(request.tensor_parallel)
            )
        ]
        self._loaded = True
        if self._script.breaks:
            self._script.breaks -= 1
            self._going.clear()
        else:
            self._going.set()
        # Nothing is served over HTTP; but who is told so can be tested with it.
        loaded = backend_pb2.Loaded(ranks=ranks, kv_cache_tokens=1024, serves_api=request.serve_api)
        yield backend_pb2.LoadEvent(loaded=loaded)

    def Generate(
        self, request: backend_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[backend_pb2.GenerateEvent]:
        text = request.text or " ".join(message.content for message in request.chat.messages)
        prompt_tokens = len(request.tokens.ids) or len(text.split())
        if prompt_tokens >= self._script.max_model_len:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the prompt has {prompt_tokens} tokens, the context only {self._script.max_model_len}",
            )
        with self._lock:
            self._script.asked.append(request.sampling.max_tokens)
            self._script.requests.append(request)
            self._script.running += 1
            self._script.most_running = max(self._script.most_running, self._script.running)
        answer: list[int] = []
        addresses = self._addresses
        try:
            while self._script.prefill_hangs and request.sampling.max_tokens == 1 and context.is_active():
                time.sleep(0.01)
            for index in range(request.sampling.max_tokens):
                if not context.is_active():
                    self._script.aborted.append(request.request_id)
                    return
                time.sleep(self._script.token_s)
                while not self._going.wait(0.01) and context.is_active():
                    pass
                last = index + 1 == request.sampling.max_tokens
                answer.append(index + self._lies)
                yield backend_pb2.GenerateEvent(
                    token_ids=[answer[-1]],
                    text=self._script.words[index % len(self._script.words)],
                    prompt_tokens=prompt_tokens,
                    finish_reason="length" if last else "",
                )
        finally:
            with self._lock:
                self._script.running -= 1
                self._note(request, answer, addresses)

    def _note(
        self, request: backend_pb2.GenerateRequest, answer: list[int], addresses: tuple[str, ...]
    ) -> None:
        self._served.answers += 1
        self._served.answer_tokens += len(answer)
        # All of them are picked, so that tests need no luck.
        if answer and self._check_share and addresses == self._addresses:
            ids = request.tokens.ids or [0]
            self._served.picked.add(prompt_ids=ids, token_ids=answer, is_likeliest=True, addresses=addresses)

    def Served(
        self, request: backend_pb2.ServedRequest, context: grpc.ServicerContext
    ) -> backend_pb2.ServedReply:
        with self._lock:
            reply = backend_pb2.ServedReply()
            reply.CopyFrom(self._served)
            del self._served.picked[:]
        return reply

    def Score(
        self, request: backend_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> backend_pb2.ScoreReply:
        """Sure of the tokens that it would have said itself."""
        reply = backend_pb2.ScoreReply()
        for at in request.positions:
            own = request.token_ids[at] == at + self._lies
            reply.scores.add(logprob=-0.1 if own else -5.0, likeliest_logprob=-0.1)
        return reply

    def Abort(
        self, request: backend_pb2.AbortRequest, context: grpc.ServicerContext
    ) -> backend_pb2.AbortReply:
        self._script.aborted.append(request.request_id)
        return backend_pb2.AbortReply()

    def Health(
        self, request: backend_pb2.HealthRequest, context: grpc.ServicerContext
    ) -> backend_pb2.HealthReply:
        state = backend_pb2.HealthReply.READY if self._loaded else backend_pb2.HealthReply.IDLE
        if not self._going.is_set():
            state = backend_pb2.HealthReply.SUSPENDED
        return backend_pb2.HealthReply(state=state, running_requests=self._script.running)

    def Suspend(
        self, request: backend_pb2.SuspendRequest, context: grpc.ServicerContext
    ) -> backend_pb2.SuspendReply:
        self._script.suspends += 1
        if self._loaded:
            self._going.clear()
        return backend_pb2.SuspendReply(waiting_requests=self._script.running)

    def Unload(
        self, request: backend_pb2.UnloadRequest, context: grpc.ServicerContext
    ) -> backend_pb2.UnloadReply:
        self._loaded = False
        self._going.set()
        return backend_pb2.UnloadReply()


@contextmanager
def scripted_engine(socket: Path, script: Script) -> Iterator[None]:
    """Serves a scripted engine on `socket` while the context lasts."""
    server = grpc.server(ThreadPoolExecutor(16))
    backend_pb2_grpc.add_BackendServicer_to_server(ScriptedEngine(script), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield
    finally:
        server.stop(grace=0).wait(timeout=5)
