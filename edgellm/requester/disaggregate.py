"""One question to two clusters: the first computes the prompt and keeps its KV blocks, the second fetches them and answers.

Both come up at the same time. The first is asked for one token, which is thrown away: the second computes it again from the
same KV, and everything that concerns the answer (sampling, stop strings, its end) happens in one place. Whatever becomes of
the first cluster, the second one answers: what is missing it computes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog
import trio

from edgellm.cluster.head import Progress, loss_explained
from edgellm.errors import EdgeError, EngineError, unwrapped
from edgellm.planning.disaggregate import Cast, Disaggregation
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import Choice, OnProgress, OpenedCluster, Requester, answer, learning, opened
from edgellm.requester.timeline import Span, Step, Timeline
from edgellm.types.request import Piece, Question

log = structlog.get_logger(__name__)


class Told(Protocol):
    """The part of `edgellm.requester.ask.Watcher` that is told of two clusters."""

    def progress(self, progress: Progress) -> None: ...

    def ready(self, opened: OpenedCluster, *, asked_s_ago: float = 0.0) -> None: ...

    def piece(self, piece: Piece) -> None: ...


@dataclass
class _First:
    """How far the first cluster is."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Of all that it does."""
    asked_at_s: float | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    """Its part is done, or will not be."""
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class _Asked:
    """What both clusters work on."""

    requester: Requester
    choice: Choice
    question: Question
    told: Told
    timeline: Timeline
    patience_s: float


async def ask_two(
    requester: Requester,
    choice: Choice,
    two: Disaggregation,
    question: Question,
    told: Told,
    *,
    patience_s: float,
) -> tuple[Span, ...]:
    """Answers as `edgellm.requester.ask.ask` does, and returns what happened when."""
    asked = _Asked(requester, choice, question, told, Timeline(), patience_s)
    first = _First()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_prefill, asked, two.prefill, first)
        await _decode(asked, two, first)
    return asked.timeline.spans


async def _prefill(asked: _Asked, cast: Cast, first: _First) -> None:
    """Has the prompt computed and its KV blocks kept. What goes wrong is told, and ends this cluster alone."""
    timeline = asked.timeline
    step = timeline.begin("bring-up to prefill", cast.names)
    try:
        # In this order: what is raised beside a cancellation has to be unwrapped, too.
        with unwrapped(), first.scope:
            # The cluster that answers need not wait for another one: it computes the prompt itself.
            async with _opened(asked, cast, "prefill", patience_s=0.0) as cluster:
                try:
                    step.who = hosts = _hosts(cluster)
                    step.end()
                    step = timeline.begin("prefill", hosts)
                    first.asked_at_s = step.begin_s
                    asked.told.progress(Progress("", "prefill", " + ".join(hosts)))
                    step.end(await _prompt_computed(asked, cluster))
                    step = timeline.begin("KV blocks kept", hosts)
                    kv = asked.requester.kv
                    if kv is not None and cluster.kv is not None:
                        await kv.tracker.gather(cluster.kv)
                    step.end()
                    first.is_done = True
                finally:
                    # Not after the cluster is gone, which takes its time.
                    first.ended.set()
    except EdgeError as error:
        log.warning("the cluster that was to compute the prompt failed", error=str(error))
        if not first.is_done:
            step.end(f"failed: {error}")
            asked.told.progress(Progress("", "prefill", f"failed, and is done where the answer is: {error}"))
    finally:
        if step.span is None:
            step.end("given up")
        first.ended.set()


async def _prompt_computed(asked: _Asked, cluster: OpenedCluster) -> str:
    """In words; the one token of the answer is thrown away."""
    question = asked.question
    one_token = replace(question, sampling=replace(question.sampling, max_tokens=1, stop=()))
    pieces: list[Piece] = []
    async with loss_explained():
        await answer(cluster, one_token, learning(asked.requester.kv, cluster, pieces.append))
    if not pieces:
        raise EngineError("the engine ended an answer that it had not begun")
    said = f"{pieces[0].prompt_tokens:,} prompt tokens"
    cached = pieces[0].cached_prompt_tokens
    return f"{said}, {cached:,} of them from KV blocks" if cached else said


async def _decode(asked: _Asked, two: Disaggregation, first: _First) -> None:
    """Answers, from the first cluster's KV blocks where they come in time."""
    timeline, told, cast = asked.timeline, asked.told, two.decode
    step = timeline.begin("bring-up to decode", cast.names)
    async with _opened(asked, cast, "decode", patience_s=asked.patience_s) as cluster:
        step.who = hosts = _hosts(cluster)
        step.end()
        kv = asked.requester.kv
        if not first.ended.is_set():
            step = timeline.begin("waiting for the prefill", hosts)
            told.progress(Progress("", "waiting", "for the prefill"))
            with trio.move_on_after(two.patience_s):
                await first.ended.wait()
            step.end()
        if not first.ended.is_set():
            told.progress(Progress("", "prefill", "took too long, and is done where the answer is"))
            first.scope.cancel()
        elif first.is_done and kv is not None and cluster.kv is not None:
            step = timeline.begin("way measured", hosts)
            await kv.tracker.prepare(cluster.kv)
            step.end()
        asked_s_ago = 0.0 if first.asked_at_s is None else timeline.now_s - first.asked_at_s
        told.ready(cluster, asked_s_ago=asked_s_ago)
        steps = _AnswerSteps(timeline, hosts, learning(kv, cluster, told.piece))
        async with loss_explained():
            await answer(cluster, asked.question, steps.piece)
        steps.end()


class _AnswerSteps:
    """The answer's part of a time line."""

    def __init__(self, timeline: Timeline, names: Sequence[str], on_piece: Callable[[Piece], None]) -> None:
        self._timeline, self._names, self._on_piece = timeline, names, on_piece
        self._step: Step = timeline.begin("first token", names)
        self._tokens = 0

    def piece(self, piece: Piece) -> None:
        if piece.token_ids and not self._tokens:
            fetched = (
                f"{piece.cached_prompt_tokens:,} of {piece.prompt_tokens:,} prompt tokens from KV blocks"
            )
            self._step.end(fetched if piece.cached_prompt_tokens else "the prompt computed")
            self._step = self._timeline.begin("decode", self._names)
        self._tokens += len(piece.token_ids)
        self._on_piece(piece)

    def end(self) -> None:
        self._step.end(f"{self._tokens:,} tokens")


def _opened(
    asked: _Asked, cast: Cast, work: str, *, patience_s: float
) -> AbstractAsyncContextManager[OpenedCluster]:
    choice = replace(asked.choice, request=cast.plan.request)
    on_progress = _of(work, asked.told.progress)
    wanted = Wanted(patience_s=patience_s)
    return opened(asked.requester, choice, wanted, on_progress, among=cast.candidates)


def _hosts(cluster: OpenedCluster) -> tuple[str, ...]:
    """Names of those who serve, who may be others than were planned."""
    return tuple(stage.name for stage in cluster.cluster.stages.stages)


def _of(work: str, on_progress: OnProgress) -> OnProgress:
    """Tells whose progress it is: both clusters have a head."""

    def told(progress: Progress) -> None:
        on_progress(replace(progress, who=f"{progress.who} ({work})" if progress.who else work))

    return told
