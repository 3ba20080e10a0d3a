"""The life of a question: discover, plan, lease, bring up, generate, tear down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import trio

from edgellm.cluster.head import Progress, loss_explained
from edgellm.errors import EdgeError, PlanError, unwrapped
from edgellm.leasing.hold import LeasesRefused
from edgellm.planning.disaggregate import Disaggregation, plan_disaggregated
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import (
    Choice,
    OnProgress,
    OpenedCluster,
    Requester,
    answer,
    choose,
    learning,
    opened,
)
from edgellm.requester.disaggregate import ask_two
from edgellm.requester.timeline import Span
from edgellm.types.request import Piece, Question, require_prompt

FREED_S = 3.0
"""Until hosts that were leased for two clusters, of which one did not come about, can be leased again."""


class Watcher(Protocol):
    """Is told what happens, as it happens."""

    def progress(self, progress: Progress) -> None: ...

    def ready(self, opened: OpenedCluster, *, asked_s_ago: float = 0.0) -> None:
        """The cluster that answers gets the question now; another one that computes its prompt got it before."""

    def piece(self, piece: Piece) -> None: ...

    def timeline(self, spans: Sequence[Span]) -> None:
        """What happened when, of a question to two clusters, after its answer."""


async def ask(requester: Requester, model: str, question: Question, wanted: Wanted, watcher: Watcher) -> None:
    """Answers one question on clusters of its own; everything is gone when it returns, raises or is cancelled.

    Raises EdgeErrors only; see `edgellm.errors`.
    """
    require_prompt(question)
    with unwrapped():
        choice = await choose(requester, model, question, wanted, watcher.progress)
        two = two_clusters(wanted, choice, watcher.progress)
        if two is not None:
            try:
                with unwrapped():
                    spans = await ask_two(
                        requester, choice, two, question, watcher, patience_s=wanted.patience_s
                    )
                    watcher.timeline(spans)
                return
            except (LeasesRefused, PlanError) as error:
                if wanted.disaggregate == "always":
                    raise
                watcher.progress(Progress("", "plan", f"one cluster prefills and decodes: {error}"))
                choice = _without_refusers(choice, error)
                await trio.sleep(FREED_S)
        async with opened(requester, choice, wanted, watcher.progress) as cluster:
            watcher.ready(cluster)
            async with loss_explained():
                await answer(cluster, question, learning(requester.kv, cluster, watcher.piece))


def _without_refusers(choice: Choice, error: EdgeError) -> Choice:
    refused = {denial.peer for denial in error.denials} if isinstance(error, LeasesRefused) else set()
    left = tuple(one for one in choice.offers.candidates if one.peer not in refused)
    return replace(choice, offers=replace(choice.offers, candidates=left)) if left else choice


def two_clusters(wanted: Wanted, choice: Choice, on_progress: OnProgress) -> Disaggregation | None:
    """Which hosts prefill and which decode; None where one cluster does both.

    Raises PlanError where two are demanded and not possible.
    """
    request = choice.request
    if wanted.disaggregate == "never" or (wanted.disaggregate == "auto" and not request.shares_kv):
        return None
    two = plan_disaggregated(request, choice.offers.candidates)
    always = wanted.disaggregate == "always"
    if two is None or not request.shares_kv:
        if always:
            raise PlanError(
                f"prefill and decode of {request.model} cannot be on different hosts: no two sets of hosts were found that can "
                "each hold it and read each other's KV cache",
                remedy="add a host with the same kind of device, or leave out --disaggregate always",
            )
        return None
    if always or two.pays:
        detail = f"prefill on {' + '.join(two.prefill.names)}, decode on {' + '.join(two.decode.names)}"
    else:
        detail = "one cluster prefills and decodes"
    answer_tokens = request.workload.answer_tokens
    expected = f"{two.predicted_s:.1f} s on two clusters, {two.alone_s:.1f} s on one"
    on_progress(Progress("", "plan", f"{detail} (for {answer_tokens} tokens {expected})"))
    return two if always or two.pays else None
