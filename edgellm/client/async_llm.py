"""A language model of the swarm, for programs with an event loop: asyncio's or trio's."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Unpack

import anyio
import anyio.to_thread

from edgellm.client.connection import Stream
from edgellm.client.llm import MAX_AT_ONCE
from edgellm.client.options import SessionOptions
from edgellm.client.prompts import Prompt, Turn, about_prompt, chat_of, question_of, questions_of
from edgellm.client.results import Completion, Gathering, Hop
from edgellm.client.sampling import SamplingParams
from edgellm.client.session import OpenSession, open_session
from edgellm.client.waiting import in_thread, to_the_end
from edgellm.errors import SessionError, UsageError, unwrapped
from edgellm.types.request import Piece, Question

_THREADS = 72
"""One for each answer that is waited for. A session answers no more than 64 at once."""


class AsyncStream:
    """The pieces of one answer, as they come: `async for piece in stream`.

    Cancelling the task that waits for a piece, `aclose`, the end of an `async with` block, and the end of the last reference
    free the engine's slot at once. Raises as `Stream` does.
    """

    def __init__(self, stream: Stream, threads: anyio.CapacityLimiter) -> None:
        self._stream = stream
        self._threads = threads

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Piece:
        try:
            piece = await anyio.to_thread.run_sync(
                next, self._stream, None, abandon_on_cancel=True, limiter=self._threads
            )
        except BaseException:
            self._stream.close()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Ends the request, whether or not the answer has ended."""
        self._stream.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


class AsyncLLM:
    """`LLM` for asyncio and trio:

        async with AsyncLLM("Qwen/Qwen3-32B", bootstrap=[…]) as llm:
            async for piece in llm.stream("The sky is blue because"):
                print(piece.text, end="")

    The session is opened by `async with`, which raises as `LLM` does; cancelling that gives the bring-up up.
    """

    def __init__(
        self, model: str | None = None, *, session: str | None = None, **options: Unpack[SessionOptions]
    ) -> None:
        self._wanted = (model, session, options)
        self._session: OpenSession | None = None

    async def __aenter__(self) -> AsyncLLM:
        if self._session is not None:
            raise UsageError("this AsyncLLM was opened before", remedy="make another one")
        self._places = anyio.CapacityLimiter(MAX_AT_ONCE)
        self._threads = anyio.CapacityLimiter(_THREADS)
        give_up = threading.Event()
        model, session, options = self._wanted

        def open_() -> None:
            opened = open_session(model, session, options, give_up, whose="AsyncLLM")
            if give_up.is_set():
                opened.close()
            else:
                self._session = opened

        try:
            await in_thread(open_, give_up.set)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends what runs, and the session if it was opened here; returns when all of it is gone, cancelled or not."""
        if self._session is not None:
            await to_the_end(self._session.close)

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        digest: str = "",
    ) -> list[Completion]:
        """As `LLM.generate`. Cancelling it ends all of the requests."""
        questions = questions_of(prompts, params)
        answers: dict[int, Completion] = {}

        async def answer(index: int, question: Question) -> None:
            try:
                answers[index] = await self._gathered(question, digest)
            except UsageError as error:
                raise about_prompt(error, index, len(questions)) from None

        with unwrapped():
            async with anyio.create_task_group() as group:
                for index, question in enumerate(questions):
                    group.start_soon(answer, index, question)
        return [answers[index] for index in range(len(questions))]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, digest: str = ""
    ) -> AsyncStream:
        """As `LLM.stream`."""
        return AsyncStream(self._open.connection.ask(question_of(prompt, params), digest), self._threads)

    async def chat(self, messages: str | Sequence[Turn], params: SamplingParams | None = None) -> Completion:
        """As `LLM.chat`."""
        return await self._gathered(chat_of(messages, params))

    @property
    def session(self) -> str:
        """As `LLM.session`; this and what follows from the moment on in which it is open."""
        return self._opened.name

    @property
    def model(self) -> str:
        return self._opened.description.model

    @property
    def digest(self) -> str:
        return self._opened.description.digest

    @property
    def endpoint(self) -> str:
        """Of OpenAI's API: http://127.0.0.1:PORT/v1."""
        return self._opened.description.endpoint

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._opened.description.max_model_len

    @property
    def route(self) -> tuple[Hop, ...]:
        """Who runs which layers."""
        return self._opened.route

    def __repr__(self) -> str:
        if self._session is None:
            return f"<AsyncLLM {self._wanted[0] or self._wanted[1]}, not open>"
        closed = ", closed" if self._session.is_closed else ""
        return f"<AsyncLLM {self.model}, session {self.session}{closed}>"

    @property
    def _opened(self) -> OpenSession:
        if self._session is None:
            raise UsageError("this AsyncLLM is not open yet", remedy="async with AsyncLLM(…) as llm: …")
        return self._session

    @property
    def _open(self) -> OpenSession:
        if self._opened.is_closed:
            raise SessionError(f"this AsyncLLM of {self.model} is closed", remedy="make another one")
        return self._opened

    async def _gathered(self, question: Question, digest: str = "") -> Completion:
        connection = self._open.connection
        async with self._places, AsyncStream(connection.ask(question, digest), self._threads) as stream:
            answer = Gathering(time.monotonic())
            async for piece in stream:
                answer.add(piece, time.monotonic())
            return answer.completion(time.monotonic())
