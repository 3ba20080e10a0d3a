"""Answers recomputed on other hosts. Shows prompt and answer to those hosts, so whoever calls this has to have the right to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
import trio

from edgellm.cluster.head import Progress
from edgellm.errors import EdgeError, PlanError, UsageError, unwrapped
from edgellm.planning.eligible import eligible
from edgellm.planning.plan import make_plan
from edgellm.requester.choose import CONTEXT_STEP, Wanted
from edgellm.requester.cluster import Choice, Requester, choose, opened
from edgellm.trust.book import Picked
from edgellm.trust.compare import Claim, Scoring
from edgellm.trust.verdict import Judgement, Statement, judge
from edgellm.types.plan import Candidate
from edgellm.wire import backend_pb2

log = structlog.get_logger(__name__)

POSITIONS = 16
"""Of one answer that are recomputed."""
MOST_SUSPECTS = 4
"""That are asked one by one after a wrong answer."""
RECOMPUTE_S = 300.0
"""That one recomputation may take, bring-up included."""
_RANDOM = random.SystemRandom()

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one check."""

    judgement: Judgement
    caught: tuple[str, ...]
    """Peers."""


async def check(requester: Requester, picked: Picked, wanted: Wanted, tell: Tell) -> Outcome | None:
    """Has some positions of an answer recomputed by hosts that had no part in it, and notes what comes of it.

    By hosts among `wanted.peers`, where any are named. A third set decides where the second one differs, and suspects are asked
    one by one. None where no other hosts can compute it now.
    """
    trust = requester.trust
    assert trust is not None
    count = min(POSITIONS, len(picked.token_ids))
    trial = _Trial(
        # Hosts must not find what others kept, and what they say of an answer is not an answer.
        replace(requester, kv=None, trust=replace(trust, share=0.0)),
        picked,
        tuple(sorted(_RANDOM.sample(range(len(picked.token_ids)), count))),
        wanted,
    )
    claimed = None if picked.logprobs is None else tuple(picked.logprobs[at] for at in trial.positions)
    statements = [Statement(frozenset(picked.hosts), Claim(claimed))]
    judgement = judge(statements)
    while len(statements) < 3 and judgement.unresolved:
        asked = frozenset[str]().union(*(one.hosts for one in statements))
        tell(f"checking {count} tokens of the answer elsewhere")
        found = await trial.recomputed(lambda host, asked=asked: host.peer not in asked)  # type: ignore[misc]
        if found is None:
            break
        statements.append(found)
        judgement = judge(statements)
    if len(statements) == 1:
        tell("the answer cannot be checked: no other hosts can compute it now")
        return None
    for suspect in sorted(_suspects(judgement))[:MOST_SUSPECTS]:
        tell(f"checking {picked.hosts.get(suspect, suspect)} by itself")
        helpers = frozenset[str]().union(*judgement.right)
        found = await trial.recomputed_with(suspect, helpers)
        if found is not None:
            statements.append(found)
    judgement = judge(statements)
    names = trial.names | dict(picked.hosts)
    caught = trust.checked(judgement, names)
    tell(_told(judgement, caught, names))
    return Outcome(judgement, caught)


def _suspects(judgement: Judgement) -> frozenset[str]:
    """Who may be the one, where a set was wrong that has several."""
    return frozenset[str]().union(*(hosts for hosts in judgement.wrong if len(hosts) > 1))


def _told(judgement: Judgement, caught: Sequence[str], names: dict[str, str]) -> str:
    def those(sets: Sequence[frozenset[str]]) -> str:
        return ", ".join(" + ".join(sorted(names.get(peer, peer) for peer in hosts)) for hosts in sets)

    if caught:
        who = ", ".join(names.get(peer, peer) for peer in caught)
        return f"caught: {who} computed wrongly, and is left out from now on (edgellm peers --trust)"
    if judgement.wrong:
        return f"{those(judgement.wrong)} computed wrongly; who of them is not known yet"
    if judgement.unresolved:
        return f"{those(judgement.unresolved)} contradict each other, and nobody else could decide"
    return f"checked: {those(judgement.right)} compute the same"


class _Trial:
    """The recomputations of one answer."""

    def __init__(
        self, requester: Requester, picked: Picked, positions: tuple[int, ...], wanted: Wanted
    ) -> None:
        self._requester, self._picked, self.positions = requester, picked, positions
        tokens = len(picked.prompt_ids) + len(picked.token_ids) + 1
        self._wanted = Wanted(
            peers=wanted.peers,
            fabric=picked.fabric,
            context=-(-tokens // CONTEXT_STEP) * CONTEXT_STEP,
            # What others go on with says nothing of those who began.
            patience_s=0.0,
        )
        self.names: dict[str, str] = {}

    async def recomputed(self, may: Callable[[Candidate], bool]) -> Statement | None:
        """By one host that may, drawn by lot; by several where one is too small. None where none can."""
        try:
            with unwrapped(), trio.move_on_after(RECOMPUTE_S):
                choice = await self._choice()
                among = [host for host in choice.offers.candidates if may(host) and not host.standing.doubt]
                alone = [host for host in among if _fits(choice, [host])]
                return await self._asked(choice, [_RANDOM.choice(alone)] if alone else among)
        except EdgeError as error:
            log.info("an answer was not recomputed", error=str(error))
        return None

    async def recomputed_with(self, suspect: str, helpers: frozenset[str]) -> Statement | None:
        """By this host alone, or with one that was borne out where it is too small."""
        try:
            with unwrapped(), trio.move_on_after(RECOMPUTE_S):
                choice = await self._choice()
                own = [host for host in choice.offers.candidates if host.peer == suspect]
                if own and _fits(choice, own):
                    return await self._asked(choice, own)
                for helper in choice.offers.candidates:
                    pair = replace(choice, request=replace(choice.request, pipeline_parallel=2))
                    if own and helper.peer in helpers and _fits(pair, [*own, helper]):
                        return await self._asked(pair, [*own, helper])
        except EdgeError as error:
            log.info("a suspect was not asked", suspect=suspect, error=str(error))
        return None

    async def _choice(self) -> Choice:
        """Who could, now. Raises EdgeErrors where nobody can."""
        wanted = self._wanted
        try:
            choice = await choose(self._requester, self._picked.digest, None, wanted, _silent)
        except UsageError:
            # Rounded up, the context is over the model's own.
            choice = await choose(
                self._requester, self._picked.digest, None, replace(wanted, context=None), _silent
            )
        allowed = eligible(choice.request, choice.offers.candidates)
        # Who is asked to compute is decided here: not all whom the user named, and none besides.
        choice = replace(
            choice,
            offers=replace(choice.offers, candidates=tuple(allowed)),
            request=replace(choice.request, peers=()),
        )
        self.names |= {host.peer: host.name for host in choice.offers.candidates}
        return choice

    async def _asked(self, choice: Choice, among: Sequence[Candidate]) -> Statement:
        """Raises EdgeErrors."""
        picked = self._picked
        request = backend_pb2.ScoreRequest(
            prompt_ids=picked.prompt_ids, token_ids=picked.token_ids, positions=self.positions
        )
        async with opened(self._requester, choice, self._wanted, _silent, among=among) as cluster:
            reply = await cluster.cluster.engine.score(request, timeout_s=RECOMPUTE_S)
            scores = list(reply.scores)[: len(self.positions)]
            said = Scoring(
                tuple(score.logprob for score in scores), tuple(score.likeliest_logprob for score in scores)
            )
            hosts = frozenset(stage.peer for stage in cluster.cluster.stages.stages)
        if len(scores) != len(self.positions):
            raise PlanError("the engine scored other positions than it was asked for")
        return Statement(hosts, said)


def _fits(choice: Choice, hosts: Sequence[Candidate]) -> bool:
    """Whether they can compute it together, each with a part of it."""
    try:
        plan = make_plan(choice.request, hosts)
    except PlanError:
        return False
    return len(plan.stages) == len(hosts)


def _silent(progress: Progress) -> None:
    """The bring-up of a check is nobody's news."""


async def check_picked(requester: Requester, wanted: Wanted, tell: Tell) -> tuple[str, ...]:
    """Checks all that is picked, one by one. Who was caught. Raises nothing that the user could do anything about."""
    trust = requester.trust
    if trust is None:
        return ()
    caught: list[str] = []
    while trust.picked:
        outcome = await check(requester, trust.picked.popleft(), wanted, tell)
        caught += outcome.caught if outcome else ()
    return tuple(caught)
