"""A cluster for a model, from discovery to a loaded engine, and one question to it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from edgellm.cluster.head import Load, Progress, open_head
from edgellm.cluster.member import Machine
from edgellm.cluster.switchboard import Switchboard
from edgellm.discovery.collect import SequenceBook
from edgellm.errors import DiscoveryError, ModelError, PlanError, unwrapped
from edgellm.leasing.hold import Leases, open_leases
from edgellm.models.light import LightStore
from edgellm.models.tokens import count_tokens
from edgellm.p2p.network import Network, PeerAddress
from edgellm.planning.plan import make_plan
from edgellm.requester.choose import Wanted, fitted, plan_request
from edgellm.requester.discover import Lent, Offers, discover
from edgellm.requester.kv import KvRequester, tracked
from edgellm.requester.model_files import KnownModel, fetch_model
from edgellm.requester.recovery import Cluster, Keeper
from edgellm.trust.book import TrustBook, watched
from edgellm.types.plan import Candidate, PlanRequest
from edgellm.types.request import Piece, Question

if TYPE_CHECKING:
    from edgellm.kv.tracker import Tracked

log = structlog.get_logger(__name__)

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Requester:
    """What asking needs of this machine and its network."""

    network: Network
    switchboard: Switchboard
    machine: Machine
    store: LightStore
    book: SequenceBook
    now: Callable[[], float]
    kv: KvRequester | None = None
    """None: clusters share no KV cache."""
    trust: TrustBook | None = None
    """None: nothing is remembered of hosts, and nothing known."""


@dataclass(frozen=True, slots=True)
class OpenedCluster:
    """A loaded cluster, and what is known of its model."""

    cluster: Cluster
    model: KnownModel
    request: PlanRequest
    kv: Tracked | None = None
    """What came from KV pieces, where the cluster shares; complete once the cluster is gone."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What hosts of the model call themselves, by peer id; those outside the cluster too, whose KV blocks it may get."""
    leased_at: float = 0.0
    """Since when its hosts lend, by the requester's clock."""
    relay_of: Callable[[str], str] = lambda peer: ""
    """`edgellm.p2p.network.Network.relay_of`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A version of a model for which a cluster is possible, and what is asked of it."""

    offers: Offers
    model: KnownModel
    request: PlanRequest


async def answer(opened: OpenedCluster, question: Question, on_piece: Callable[[Piece], None]) -> None:
    """Generates on an open cluster. Raises UsageError for a prompt that does not fit, EngineError when the engine fails."""
    prompt_tokens = count_prompt(opened.model.directory, question)
    bounded = fitted(question, prompt_tokens=prompt_tokens, context=opened.request.context)
    async with aclosing(opened.cluster.engine.generate(bounded, secrets.token_hex(8))) as pieces:
        async for piece in pieces:
            on_piece(piece)


def learning(
    kv: KvRequester | None, opened: OpenedCluster, on_piece: Callable[[Piece], None]
) -> Callable[[Piece], None]:
    """`on_piece`, and what the first one tells of prefill speed."""
    if kv is None:
        return on_piece
    asked_at, first = trio.current_time(), True

    def heard(piece: Piece) -> None:
        nonlocal first
        if first and not piece.cached_prompt_tokens:
            predicted = opened.cluster.stages.prediction.prefill_tok_s
            seconds = trio.current_time() - asked_at
            kv.prefill.saw(opened.cluster.plan.digest, predicted, tokens=piece.prompt_tokens, seconds=seconds)
        first = False
        on_piece(piece)

    return heard


async def choose(
    requester: Requester,
    model: str,
    question: Question | None,
    wanted: Wanted,
    on_progress: OnProgress,
    *,
    freed: Mapping[str, Lent] | None = None,
) -> Choice:
    """Who offers `model` now, and what to ask of them, sized for `question` where there is one.

    With `freed`: who would, were that no longer lent.

    Raises DiscoveryError, PlanError, ModelError or UsageError where no cluster is possible.
    """
    on_progress(Progress("", "discover", model))
    for patient in (False, True):
        versions = await discover(
            requester.network, model, book=requester.book, now=requester.now, freed=freed, patient=patient
        )
        on_progress(Progress("", "plan", _versions_text(versions)))
        versions = tuple(_with_standings(requester.trust, offers, on_progress) for offers in versions)
        try:
            return await _first_that_fits(requester, model, versions, question, wanted)
        except PlanError:
            # Those that answered at once are not enough: perhaps with the slow ones.
            if patient or not any(offers.incomplete for offers in versions):
                raise
    raise AssertionError("who is patient returns or raises")


@asynccontextmanager
async def opened_cluster(
    requester: Requester, model: str, question: Question | None, wanted: Wanted, on_progress: OnProgress
) -> AsyncIterator[OpenedCluster]:
    """A loaded cluster for `model`, sized for `question` where there is one; gone when the context ends."""
    choice = await choose(requester, model, question, wanted, on_progress)
    async with opened(requester, choice, wanted, on_progress) as cluster:
        yield cluster


@asynccontextmanager
async def opened(
    requester: Requester,
    choice: Choice,
    wanted: Wanted,
    on_progress: OnProgress,
    *,
    among: Sequence[Candidate] | None = None,
) -> AsyncIterator[OpenedCluster]:
    """A loaded cluster of what was chosen, over some of the hosts `among` (default: all); gone when the context ends.

    When hosts are lost others take their places, for `wanted.patience_s`; then HostLost comes out of the body.
    """
    network, offers, request = requester.network, choice.offers, choice.request
    if among is not None:
        offers = replace(offers, candidates=tuple(among))
    sharing = requester.kv if request.shares_kv else None
    prefill_tok_s = make_plan(request, offers.candidates).prediction.prefill_tok_s if sharing else 0.0

    async def discover_again(lent: Mapping[str, Lent]) -> Offers:
        versions = await discover(network, request.model, book=requester.book, now=requester.now, freed=lent)
        for found in versions:
            if found.digest == offers.digest:
                judged = _with_standings(requester.trust, found, lambda line: None)
                usable = tuple(one for one in judged.candidates if not one.standing.excluded)
                return replace(judged, candidates=usable)
        raise DiscoveryError(f"nobody else holds this version of {request.model}")

    on_progress(Progress("", "lease"))
    with unwrapped(), tracked(sharing, ()) as kv:
        async with (
            open_head(
                network,
                requester.switchboard,
                requester.machine,
                request,
                choice.model.directory,
                cluster=secrets.token_hex(16),
                issued_at=requester.now(),
                on_progress=on_progress,
                kv=sharing.sharing(network, offers.digest, prefill_tok_s) if sharing else None,
                standby=wanted.spares > 0,
            ) as head,
            open_leases(network, silence_s=wanted.silence_s) as leases,
            trio.open_nursery() as nursery,
        ):
            leased_at = requester.now()
            nursery.start_soon(_tell_news, leases, on_progress)
            keeper = Keeper(
                network=network,
                head=head,
                leases=leases,
                request=request,
                load=Load(
                    max(wanted.sequences, wanted.at_once),
                    wanted.serves_api,
                    wanted.also_named,
                    requester.trust.share if requester.trust else 0.0,
                ),
                discover=discover_again,
                now=requester.now,
                on_progress=on_progress,
                patience_s=wanted.patience_s,
                spares=wanted.spares,
                silence_s=wanted.silence_s,
                on_members=kv.follow if kv is not None else lambda members: None,
            )
            if requester.trust is not None:
                requester.trust.keep(leases.account)
            await keeper.begin(offers)
            nursery.start_soon(keeper.keep)
            names = {candidate.peer: candidate.name for candidate in choice.offers.candidates}
            async with watched(requester.trust, keeper.cluster, leases.account, names):
                yield OpenedCluster(
                    keeper.cluster, choice.model, request, kv, names, leased_at, network.relay_of
                )
            if sharing is not None and kv is not None:
                # While the cells are still there: what they computed last is announced by now or never.
                await sharing.tracker.gather(kv)
            nursery.cancel_scope.cancel()


async def _tell_news(leases: Leases, on_progress: OnProgress) -> None:
    async for news in leases.news:
        on_progress(Progress(news.name, news.phase, news.detail))


async def _first_that_fits(
    requester: Requester,
    model: str,
    versions: tuple[Offers, ...],
    question: Question | None,
    wanted: Wanted,
) -> Choice:
    """The first version of the model (the most offered first) for which a plan is possible.

    Raises the first version's error when none is: most often there is only one.
    """
    first_error: PlanError | ModelError | None = None
    for offers in versions:
        hosts = [PeerAddress(peer, address.addresses) for peer, address in sorted(offers.hosts.items())]
        try:
            known = await fetch_model(requester.network, offers.digest, hosts, requester.store)
            prompt_tokens = count_prompt(known.directory, question) if question else None
            request = plan_request(
                model,
                offers.digest,
                known.manifest.shape,
                wanted,
                prompt_tokens=prompt_tokens,
                max_tokens=question.sampling.max_tokens if question else 0,
            )
            request = _with_sharing(requester.kv, request, prompt_tokens, offers)
            request = _with_experience(requester.kv, request)
            make_plan(request, offers.candidates)
        except (PlanError, ModelError) as error:
            first_error = first_error or error
            continue
        return Choice(offers, known, request)
    assert first_error is not None
    if len(versions) > 1:
        hosts_of = "; ".join(
            f"{offers.digest[:12]}: {', '.join(candidate.name for candidate in offers.candidates)}"
            for offers in versions
        )
        raise type(first_error)(
            f"{first_error} (hosts offer {len(versions)} different versions of {model}, which cannot share a "
            f"cluster: {hosts_of})",
            remedy=first_error.remedy,
        ) from first_error
    raise first_error


def _with_standings(trust: TrustBook | None, offers: Offers, on_progress: OnProgress) -> Offers:
    """The offers, with what is known of those who make them. Who is left out by it is told."""
    if trust is None:
        return offers
    candidates = trust.judged(offers.candidates)
    for candidate in candidates:
        if candidate.standing.excluded:
            line = f"{candidate.name or candidate.peer} is left out: {candidate.standing.excluded}"
            on_progress(Progress("", "plan", line))
    return replace(offers, candidates=candidates)


def _with_sharing(
    kv: KvRequester | None, request: PlanRequest, prompt_tokens: int | None, offers: Offers
) -> PlanRequest:
    """The request, with the KV cache shared where it was asked for or is worth it and fits."""
    # Members on a trusted LAN have no network of their own, and share nothing.
    if kv is None or request.fabric != "overlay" or not kv.is_for(prompt_tokens):
        return request
    sharing = replace(request, shares_kv=True)
    if kv.least_prompt_tokens:
        try:
            make_plan(sharing, offers.candidates)
        except PlanError:
            return request
    return sharing


def _with_experience(kv: KvRequester | None, request: PlanRequest) -> PlanRequest:
    """The request, with what is known of the speed at which engines compute prompts of this model."""
    if kv is None:
        return request
    return replace(
        request, workload=replace(request.workload, prefill_share=kv.prefill.share(request.digest))
    )


def count_prompt(directory: Path, question: Question) -> int | None:
    """Tokens of the question's texts, or None where that cannot be told here."""
    if question.text is not None:
        return count_tokens(directory, question.text)
    if question.token_ids:
        return len(question.token_ids)
    counts = [count_tokens(directory, message.content) for message in question.messages]
    return None if None in counts else sum(count for count in counts if count is not None)


def _versions_text(versions: tuple[Offers, ...]) -> str:
    hosts = sum(len(offers.candidates) for offers in versions)
    return f"{hosts} host{'s' if hosts != 1 else ''}"
