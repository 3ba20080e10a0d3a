"""Prefill on some hosts and decode on others: when that is faster than one cluster for both.

Prefill is bound by arithmetic, decode by memory bandwidth and by the way to the hosts, so the best hosts for one are not
always the best for the other (Zhong et al., DistServe, OSDI 2024; Patel et al., Splitwise, ISCA 2024). With p tokens of prompt
and n of answer:

    alone   = p / prefill + n / decode                                  of the one cluster
    apart   = p / prefill(A) + transfer(p) + rest / prefill(B) + n / decode(B)

The two clusters have no host in common, for while the second one fetches what the first one computed both are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from edgellm.errors import PlanError
from edgellm.planning.eligible import eligible
from edgellm.planning.plan import make_plan
from edgellm.types.advert import Engine
from edgellm.types.plan import Candidate, PlanRequest, StagePlan

TRANSFER_BYTES_S = 12.5e6
"""KV from one host to another: 100 Mbit/s is assumed, as nothing is known of the way between two hosts that have not met."""
HANDOVER_S = 0.7
"""Until the first cluster has stored and announced what it computed, and the second one has found it."""
REST_TOKENS = 64
"""The end of the prompt that fills no whole chunk, and is computed twice."""
LEAST_PATIENCE_S = 5.0
"""Two clusters that are begun at the same time are rarely ready at the same time."""
LEAST_GAIN = 1.2
"""Two clusters take more hosts, and predictions are off."""


@dataclass(frozen=True, slots=True)
class Cast:
    """One of two clusters."""

    plan: StagePlan
    candidates: tuple[Candidate, ...]
    """Who may take a part in it. Hosts that neither plan needs stand by for the one that decodes, should somebody refuse."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.plan.stages)


@dataclass(frozen=True, slots=True)
class Disaggregation:
    """Two clusters for one question."""

    prefill: Cast
    decode: Cast
    predicted_s: float
    """From the question to the end of an answer of full length."""
    alone_s: float
    """The same of the best single cluster."""
    patience_s: float
    """How long the second cluster, once ready, waits for the first: as long as computing the prompt itself would take it, but
    no longer than the first one may reasonably take. So the first one costs at most that, whatever becomes of it."""

    @property
    def pays(self) -> bool:
        return self.predicted_s * LEAST_GAIN <= self.alone_s


def plan_disaggregated(request: PlanRequest, candidates: Sequence[Candidate]) -> Disaggregation | None:
    """The pair of clusters that answers soonest, of those tried; None where no two without a common host were found that can
    hold the model.

    The request's workload says how long the prompt and the answer are; what else it fixes holds for both clusters. Raises
    PlanError when not even one cluster is possible.
    """
    alone_s = request.workload.seconds(make_plan(request, candidates).prediction)
    pairs = [
        _joined(request, prefill, decode, alone_s)
        for group in _readable(eligible(request, candidates))
        for prefill, decode in _pairs(replace(request, peers=()), group)
    ]
    return min(pairs, key=lambda pair: pair.predicted_s, default=None)


def _readable(candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Groups of hosts that can read each other's KV cache: of one engine and one layout."""

    def key(candidate: Candidate) -> tuple[Engine, tuple[str, ...]]:
        return candidate.engine, tuple(sorted({device.kv_layout for device in candidate.devices}))

    ordered = sorted(candidates, key=lambda candidate: (str(key(candidate)), candidate.peer))
    for _, group in groupby(ordered, key=key):
        yield list(group)


def _pairs(request: PlanRequest, group: Sequence[Candidate]) -> Iterator[tuple[Cast, Cast]]:
    """Each cluster once with the first choice of hosts, and the other with what is left."""
    whole = request.workload
    # It decodes one token, so its speed at that is no matter.
    prefill = replace(request, workload=replace(whole, answer_tokens=1), min_tok_s=0.0)
    decode = replace(request, workload=replace(whole, prompt_tokens=min(REST_TOKENS, whole.prompt_tokens)))
    for first, second in ((prefill, decode), (decode, prefill)):
        for one, other in _disjoint(first, second, group):
            filler, answerer = (one, other) if first is prefill else (other, one)
            serving, others = _parted(group, filler)
            yield Cast(filler, serving), Cast(answerer, others)


def _disjoint(
    first: PlanRequest, second: PlanRequest, group: Sequence[Candidate]
) -> Iterator[tuple[StagePlan, StagePlan]]:
    """A plan for `first`, and one for `second` over the others. Where what is left is too small, the first does without one of
    the hosts that it took, each in turn.
    """
    try:
        favourite = make_plan(first, group)
    except PlanError:
        return
    narrowed: list[Sequence[Candidate]] = [group]
    narrowed += [
        [candidate for candidate in group if candidate.peer != stage.peer] for stage in favourite.stages
    ]
    for left in narrowed:
        try:
            one = make_plan(first, left)
            yield one, make_plan(second, _parted(group, one)[1])
        except PlanError:
            continue
        if left is group:
            return


def _parted(
    group: Sequence[Candidate], plan: StagePlan
) -> tuple[tuple[Candidate, ...], tuple[Candidate, ...]]:
    """Those who serve a stage of `plan`, and the others."""
    taken = {stage.peer for stage in plan.stages}
    serving = tuple(candidate for candidate in group if candidate.peer in taken)
    return serving, tuple(candidate for candidate in group if candidate.peer not in taken)


def _joined(request: PlanRequest, prefill: Cast, decode: Cast, alone_s: float) -> Disaggregation:
    whole, shape = request.workload, request.shape
    kv_bytes = whole.prompt_tokens * shape.kv_bytes_per_token_and_layer * shape.layers
    prefill_s = prefill.plan.request.workload.seconds(prefill.plan.prediction)
    decode_s = decode.plan.request.workload.seconds(decode.plan.prediction)
    predicted_s = prefill_s + HANDOVER_S + kv_bytes / TRANSFER_BYTES_S + decode_s
    itself_s = replace(whole, answer_tokens=0).seconds(decode.plan.prediction)
    patience_s = max(LEAST_PATIENCE_S, min(itself_s, LEAST_PATIENCE_S + 2 * prefill_s))
    return Disaggregation(prefill, decode, predicted_s, alone_s, patience_s)
