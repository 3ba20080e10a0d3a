"""What a requester keeps and consults of what it has seen of hosts."""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from edgellm.errors import EngineError
from edgellm.trust.ledger import Ledger
from edgellm.trust.score import standing
from edgellm.trust.settle import Account, Settled
from edgellm.trust.verdict import Judgement
from edgellm.types.plan import Candidate, ClusterPlan, StagePlan
from edgellm.wire import backend_pb2

if TYPE_CHECKING:
    from edgellm.engine.client import EngineClient

log = structlog.get_logger(__name__)

LOOK_S = 2.0
LOOK_TIMEOUT_S = 0.5
MAX_PICKED = 8
"""Answers that wait for a check; the oldest goes first."""
LEAST_TOKENS = 4
"""Of an answer, for a check to say anything."""


class Cluster(Protocol):
    """The part of `edgellm.requester.recovery.Cluster` that is of use here."""

    @property
    def plan(self) -> ClusterPlan: ...
    @property
    def stages(self) -> StagePlan: ...
    @property
    def engine(self) -> EngineClient: ...


@dataclass(frozen=True, slots=True)
class Picked:
    """An answer that is to be checked."""

    model: str
    digest: str
    fabric: str
    hosts: Mapping[str, str]
    """Who gave it: names by peer id."""
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    """None: each token claims to be the likeliest one."""


@dataclass
class TrustBook:
    """Of one requester."""

    ledger: Ledger
    share: float = 0.0
    """Of the answers, 0 to 1: how many are picked for a check."""
    now: Callable[[], float] = time.time
    picked: deque[Picked] = field(default_factory=lambda: deque(maxlen=MAX_PICKED))

    def judged(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """The candidates, with what is known of each."""
        return tuple(self._judged(candidate) for candidate in candidates)

    def _judged(self, candidate: Candidate) -> Candidate:
        try:
            record = self.ledger.record(candidate.peer)
        except sqlite3.Error as error:
            log.warning("what is known of hosts cannot be read", error=str(error))
            return candidate
        if record is None:
            return candidate
        return replace(candidate, standing=standing(record.outcomes, record.caught, self.now()))

    def keep(self, account: Account) -> None:
        """Has this account be kept, and be told of."""
        account.now, account.settled, account.lost = self.now, self.settled, self.lost

    def settled(self, settled: Sequence[Settled]) -> None:
        for one in settled:
            self._write(
                lambda one=one: self.ledger.served(  # type: ignore[misc]
                    one.receipt, one.name, one.envelope, asked_to_sign=one.was_asked
                )
            )

    def lost(self, peer: str, name: str, reason: str) -> None:
        self._write(lambda: self.ledger.failed(peer, name, reason))

    def checked(self, judgement: Judgement, names: Mapping[str, str]) -> tuple[str, ...]:
        """Notes what came of a check. Who is caught by it."""
        caught: list[str] = []
        self._write(lambda: caught.extend(self.ledger.checked(judgement, dict(names))))
        return tuple(caught)

    def _write(self, change: Callable[[], object]) -> None:
        try:
            change()
        except sqlite3.Error as error:
            # An answer is worth more than a note about it.
            log.warning("what was seen of a host cannot be kept", error=str(error))


@asynccontextmanager
async def watched(
    trust: TrustBook | None, cluster: Cluster, account: Account, names: Mapping[str, str]
) -> AsyncIterator[None]:
    """Counts what the cluster answers while the body runs, and takes what is picked for a check."""
    if trust is None:
        yield
        return
    watch = _Watch(trust, cluster, account, dict(names))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.keep_looking)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LOOK_TIMEOUT_S):
                await watch.look(LOOK_TIMEOUT_S)


class _Watch:
    def __init__(self, trust: TrustBook, cluster: Cluster, account: Account, names: dict[str, str]) -> None:
        self._trust, self._cluster, self._account, self._names = trust, cluster, account, names
        self._peers: dict[str, str] = {}
        """Of members, by their addresses, also of those that are gone."""
        self._answers = self._tokens = 0

    async def keep_looking(self) -> None:
        while True:
            # What the engine has handed out it does not hand out again: a look that has begun is not broken off.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LOOK_TIMEOUT_S):
                await self.look(LOOK_TIMEOUT_S)
            await trio.sleep(LOOK_S)

    async def look(self, timeout_s: float) -> None:
        cluster = self._cluster
        for stage in cluster.stages.stages:
            self._names.setdefault(stage.peer, stage.name)
        self._peers |= {member.address: member.peer for member in cluster.plan.workers}
        # Before the engine is asked: what it tells then was computed by these, or by those before them.
        serving = {stage.peer for stage in cluster.stages.stages}
        try:
            reply = await cluster.engine.served(timeout_s=timeout_s)
        except EngineError as error:
            log.debug("the engine does not say what it served", error=str(error))
            return
        for peer in serving:
            self._account.answers[peer] += reply.answers - self._answers
            self._account.tokens[peer] += reply.answer_tokens - self._tokens
        self._answers, self._tokens = reply.answers, reply.answer_tokens
        for answer in reply.picked:
            hosts = {self._peers.get(address, "") for address in answer.addresses}
            named = {peer: self._names.get(peer, "") for peer in hosts}
            if hosts and "" not in hosts and (one := picked(answer, cluster, named)) is not None:
                self._trust.picked.append(one)


def picked(answer: backend_pb2.PickedAnswer, cluster: Cluster, hosts: Mapping[str, str]) -> Picked | None:
    """None for what cannot be compared with anything, or not be held against these hosts."""
    is_whole = len(answer.logprobs) == len(answer.token_ids)
    if len(answer.token_ids) < LEAST_TOKENS or not (answer.is_likeliest or is_whole):
        return None
    if cluster.plan.kv is not None and answer.cached_prompt_tokens:
        # Part of it may be the work of whoever kept these KV blocks, and who that was the engine does not know.
        return None
    return Picked(
        model=cluster.stages.request.model,
        digest=cluster.plan.digest,
        fabric=cluster.plan.fabric,
        hosts=hosts,
        prompt_ids=tuple(answer.prompt_ids),
        token_ids=tuple(answer.token_ids),
        logprobs=None if answer.is_likeliest else tuple(answer.logprobs),
    )
