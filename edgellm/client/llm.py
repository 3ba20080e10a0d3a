"""A language model of the swarm, for programs without an event loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Unpack

from edgellm.client.connection import Stream
from edgellm.client.options import SessionOptions
from edgellm.client.prompts import Prompt, Turn, about_prompt, chat_of, question_of, questions_of
from edgellm.client.results import Completion, Gathering, Hop
from edgellm.client.sampling import SamplingParams
from edgellm.client.session import OpenSession, open_session
from edgellm.errors import SessionError, UsageError

MAX_AT_ONCE = 32
"""Requests of one `LLM` that the engine has at once; further ones wait here."""


class LLM:
    """A model on machines that others lend: opens a session for it, and closes it at the end.

        with LLM("Qwen/Qwen3-32B", bootstrap=[…], min_tok_s=5) as llm:
            for piece in llm.stream("The sky is blue because", SamplingParams(max_tokens=200)):
                print(piece.text, end="")

    The options are those of `SessionOptions`. `LLM(session="amber-1f3c")` uses a session that is open, and leaves it open.
    Raises DiscoveryError where nobody hosts the model, PlanError where those who do cannot run it as asked, and what else
    happens during the bring-up. Where a program ends without `close`, its session follows within seconds.

    All methods may be called from any number of threads at the same time; a `Stream` is for one. Not after a fork.
    """

    def __init__(
        self, model: str | None = None, *, session: str | None = None, **options: Unpack[SessionOptions]
    ) -> None:
        self._session: OpenSession = open_session(model, session, options, whose="LLM")
        self._places = threading.BoundedSemaphore(MAX_AT_ONCE)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        digest: str = "",
    ) -> list[Completion]:
        """Answers to all prompts, in their order; the engine works on many of them at once.

        A prompt is a text or a list of token ids, taken as they are, or a list of messages. When one fails, all end, and its
        error is raised.

        With `digest` only that model may answer, for prompts of its own token ids: SessionError where the session has another
        one by now.
        """
        questions = questions_of(prompts, params)
        streams = [self._open.connection.ask(question, digest) for question in questions]
        if not streams:
            return []
        with ThreadPoolExecutor(min(MAX_AT_ONCE, len(streams))) as threads:
            try:
                answers = [threads.submit(self._gathered, stream) for stream in streams]
                wait(answers, return_when=FIRST_EXCEPTION)
                failed = _first_failed(answers)
            finally:
                # Nothing to those that have ended.
                for stream in streams:
                    stream.close()
        if failed is None:
            return [answer.result() for answer in answers]
        index, error = failed
        raise about_prompt(error, index, len(streams)) if isinstance(error, UsageError) else error

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, *, digest: str = "") -> Stream:
        """The answer piece by piece, as it comes. `prompt` and `digest` are as in `generate`."""
        return self._open.connection.ask(question_of(prompt, params), digest)

    def chat(self, messages: str | Sequence[Turn], params: SamplingParams | None = None) -> Completion:
        """The model's answer in a chat, by its chat template. A text is what a user says.

        `stream` and `generate` take messages, too.
        """
        return self._gathered(self._open.connection.ask(chat_of(messages, params)))

    def model_directory(self) -> Path:
        """Where the model's configuration and tokenizer are on this machine; not its weights."""
        return self._session.model_directory()

    def close(self) -> None:
        """Ends what runs, and the session if it was opened here; returns when all of it is gone."""
        self._session.close()

    @property
    def session(self) -> str:
        """The session's name, for `edgellm ask --session` and for others of `LLM(session=…)`."""
        return self._session.name

    @property
    def model(self) -> str:
        """This and what follows as of the last request: `edgellm session swap` puts another model behind a session."""
        return self._session.description.model

    @property
    def digest(self) -> str:
        """Of the model: two of one name and digest are the same in every byte."""
        return self._session.description.digest

    @property
    def endpoint(self) -> str:
        """Of OpenAI's API: http://127.0.0.1:PORT/v1."""
        return self._session.description.endpoint

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._session.description.max_model_len

    @property
    def route(self) -> tuple[Hop, ...]:
        """Who runs which layers."""
        return self._session.route

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LLM {self.model}, session {self.session}{', closed' if self._session.is_closed else ''}>"

    @property
    def _open(self) -> OpenSession:
        if self._session.is_closed:
            raise SessionError(f"this LLM of {self.model} is closed", remedy="make another one")
        return self._session

    def _gathered(self, stream: Stream) -> Completion:
        if not self._places.acquire(timeout=self._session.connection.timeout_s):
            raise SessionError(
                f"session {self.session!r} took no further question in time", remedy="ask for less at once"
            )
        try:
            return gathered(stream)
        finally:
            self._places.release()


def gathered(stream: Stream) -> Completion:
    """The whole of an answer."""
    with stream:
        answer = Gathering(time.monotonic())
        for piece in stream:
            answer.add(piece, time.monotonic())
        return answer.completion(time.monotonic())


def _first_failed(answers: Sequence[Future[Completion]]) -> tuple[int, BaseException] | None:
    for index, answer in enumerate(answers):
        if answer.done() and (error := answer.exception()) is not None:
            return index, error
    return None
