"""The requester's bring-up: commit the signed plan, run the head, load the engine over all members."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from edgellm.cluster.assemble import Grant, HeadDoor, assemble
from edgellm.cluster.door import open_door, reachable_hosts
from edgellm.cluster.member import Machine, RunningMember
from edgellm.cluster.switchboard import Switchboard
from edgellm.engine.client import EngineClient, open_engine
from edgellm.errors import CellError, EngineError
from edgellm.leasing.codec import seal_plan
from edgellm.leasing.hold import Leases, News
from edgellm.p2p.network import Network
from edgellm.types.plan import ClusterPlan, KvSharing, StagePlan
from edgellm.wire import backend_pb2

LOSS_TOLD_S = 1.5
API_SOCKET = "api.sock"
"""Beside the engine's own, as `proto/backend.proto` says."""
BRING_UP_TIMEOUT_S = 1800.0
"""Large models load for minutes; a member that dies meanwhile is noticed by its lease, not by this."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Something that happened during bring-up, for whoever watches."""

    who: str
    """"head", or a host's name."""
    phase: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that answers."""

    plan: ClusterPlan
    stages: StagePlan
    engine: EngineClient
    engine_socket: Path
    api_socket: Path | None = None
    """Where the engine serves its OpenAI-compatible API over HTTP, if it was asked to and does."""


@dataclass(frozen=True, slots=True)
class Load:
    """How the engine is to serve."""

    sequences: int
    """Requests that share its steps, at most."""
    serves_api: bool = False
    """Over HTTP as well."""
    also_named: tuple[str, ...] = ()
    """Names that requests over HTTP may call the model by, besides its own."""


@asynccontextmanager
async def bring_up(
    network: Network,
    switchboard: Switchboard,
    machine: Machine,
    leases: Leases,
    stages: StagePlan,
    model_directory: Path,
    *,
    cluster: str,
    issued_at: float,
    load: Load,
    on_progress: Callable[[Progress], None],
    kv: KvSharing | None = None,
) -> AsyncIterator[Cluster]:
    """A loaded cluster over `leases`, whose head runs here; gone when the context ends.

    `model_directory` needs to hold config and tokenizer only; `kv` says how the members share their KV cache, if they do.

    Raises CellError or EngineError when the head fails; the loss of a host comes out of `hold_leases`.
    """
    with open_door(reachable_hosts(network.addresses)) as door:
        head = HeadDoor(network.peer, door.identity.certificate_der, door.endpoints, _bare(network.addresses))
        grants = [
            Grant(
                peer=held.wish.host.peer,
                lease=held.lease,
                devices=held.devices,
                certificate=held.certificate,
                endpoints=held.endpoints,
                addresses=held.wish.host.addresses,
            )
            for held in leases.held
        ]
        plan = assemble(
            stages, grants, head, cluster=cluster, token=secrets.token_hex(32), issued_at=issued_at, kv=kv
        )
        await leases.commit(seal_plan(plan, network.identity))
        async with (
            machine.open_member(switchboard, plan, plan.head, door, model_directory) as member,
            # Inside the member's context, so that its end, when the body leaves, is not taken for a failure.
            trio.open_nursery() as nursery,
            open_engine(member.engine_socket) as engine,
        ):
            nursery.start_soon(_tell_news, leases, on_progress)
            nursery.start_soon(_watch, member, on_progress)
            async with loss_explained():
                loaded = await engine.load(
                    _load_request(plan, stages, load, member),
                    lambda name, detail: on_progress(Progress("head", name, detail)),
                    timeout_s=BRING_UP_TIMEOUT_S,
                )
            check_placement(plan, loaded)
            api_socket = member.engine_socket.with_name(API_SOCKET) if loaded.serves_api else None
            yield Cluster(plan, stages, engine, member.engine_socket, api_socket)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def loss_explained() -> AsyncIterator[None]:
    """Holds an engine's error back for a moment, within a context of `hold_leases`.

    A member that goes breaks the engine first; its lease says who it was and why just afterwards, and that is the
    error to raise.
    """
    try:
        yield
    except EngineError:
        await trio.sleep(LOSS_TOLD_S)
        raise


def check_placement(plan: ClusterPlan, loaded: backend_pb2.Loaded) -> None:
    """Raises EngineError unless the ranks run the layers that the plan gave to their members."""
    planned = sorted(
        (member.address, member.first_layer, member.end_layer)
        for member in plan.workers
        for _ in range(plan.tensor_parallel)
    )
    real = sorted((rank.address, rank.first_layer, rank.end_layer) for rank in loaded.ranks)
    if planned != real:
        raise EngineError(
            f"the engine put layers elsewhere than planned: {real} instead of {planned}",
            remedy="this is a defect of the backend; please report it with this line",
        )


async def _tell_news(leases: Leases, on_progress: Callable[[Progress], None]) -> None:
    async for news in leases.news:
        on_progress(_progress_of(news))


def _progress_of(news: News) -> Progress:
    return Progress(news.name, news.phase, news.detail)


async def _watch(member: RunningMember, on_progress: Callable[[Progress], None]) -> None:
    """Tells what the head's cell says, and raises when it is gone: the engine itself would hang, not fail."""
    failure = ""
    async for event in member.cell.events:
        if event.get("event") == "phase":
            on_progress(Progress("head", str(event.get("name", "")), str(event.get("detail", ""))))
        elif event.get("event") == "failed":
            failure = str(event.get("detail", ""))
    status = await member.cell.wait()
    said = failure or (member.cell.stderr_tail().strip().splitlines() or ["it said nothing"])[-1]
    raise CellError(
        f"the head's cell ended with status {status}: {said[:500]}", remedy="run `edgellm doctor`"
    )


def _load_request(
    plan: ClusterPlan, stages: StagePlan, load: Load, member: RunningMember
) -> backend_pb2.LoadRequest:
    return backend_pb2.LoadRequest(
        model_path=member.model_path,
        head_address=plan.head.address,
        tensor_parallel=plan.tensor_parallel,
        stages=[
            backend_pb2.Stage(
                address=worker.address, first_layer=worker.first_layer, end_layer=worker.end_layer
            )
            for worker in plan.workers
        ],
        max_model_len=plan.max_model_len,
        kv_cache_bytes=plan.kv_cache_bytes,
        max_num_seqs=max(1, load.sequences),
        served_model_name=stages.request.model,
        served_model_names=(stages.request.model, *load.also_named),
        share_kv=plan.kv is not None,
        serve_api=load.serves_api,
    )


def _bare(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(address.rsplit("/p2p/", 1)[0] for address in addresses)
