"""The requester's own part of a cluster: run the head, let members in, load the engine over them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from edgellm.cluster.assemble import HeadDoor, head_alone
from edgellm.cluster.door import open_door, reachable_hosts
from edgellm.cluster.member import ENGINE_SOCKET, Machine, RunningMember
from edgellm.cluster.switchboard import Switchboard
from edgellm.engine.client import EngineClient
from edgellm.errors import CellError, EngineError
from edgellm.p2p.network import Network
from edgellm.types.plan import ClusterPlan, KvSharing, PlanRequest, StagePlan
from edgellm.types.text import one_line
from edgellm.wire import backend_pb2

LOSS_TOLD_S = 1.5
MAX_SAID = 64 << 10
MAX_ALARMS = 16
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
class Load:
    """How the engine is to serve."""

    sequences: int
    """Requests that share its steps, at most."""
    serves_api: bool = False
    """Over HTTP as well."""
    also_named: tuple[str, ...] = ()
    """Names that requests over HTTP may call the model by, besides its own."""
    check_share: float = 0.0
    """Of the answers, 0 to 1: how many are picked for a check."""
    stall_s: float = 0.0
    """A rank that falls silent while it should compute is taken for lost within so many seconds; 0: as the engine has it."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """What the head's engine noticed of a member by itself."""

    address: str
    """Empty where it does not know whose."""
    detail: str
    is_lost: bool
    """Else it has only become slow."""


class Head:
    """The requester's own part of a cluster: it outlives members, so answers go on when others take their places.

    Made by `open_head`.
    """

    def __init__(self, alone: ClusterPlan, member: RunningMember, engine: EngineClient) -> None:
        self.alone = alone
        """The plan without anybody else."""
        self.engine = engine
        self.engine_socket = member.engine_socket
        self.api_socket: Path | None = None
        """Where the engine serves its OpenAI-compatible API over HTTP, once it is loaded, if it was asked to and does."""
        self._member = member
        self._tell_alarm, self.alarms = trio.open_memory_channel[Alarm](MAX_ALARMS)

    async def admit(self, plan: ClusterPlan) -> None:
        """Lets the members of `plan`, and nobody else, reach the head. Raises CellError."""
        await self._member.amend(plan)

    async def load(
        self, plan: ClusterPlan, stages: StagePlan, load: Load, on_progress: Callable[[Progress], None]
    ) -> None:
        """Loads the engine over the members of `plan`; where it is suspended, what it was asked goes on. Raises EngineError."""
        loaded = await self.engine.load(
            _load_request(plan, stages, load, self._member),
            lambda name, detail: on_progress(Progress("head", name, detail)),
            timeout_s=BRING_UP_TIMEOUT_S,
        )
        check_placement(plan, loaded)
        self.api_socket = self._member.socket(API_SOCKET) if loaded.serves_api else None

    async def watch(self, on_progress: Callable[[Progress], None]) -> None:
        """Tells what the head's cell says, and raises CellError when it is gone: the engine itself would hang, not fail."""
        failure = ""
        cell = self._member.cell
        async for event in cell.events:
            said, address = one_line(str(event.get("detail", "")), MAX_SAID), str(event.get("address", ""))
            match event.get("event"):
                case "phase":
                    on_progress(Progress("head", one_line(str(event.get("name", "")), 64), said))
                case "serving":
                    self._member.socket(ENGINE_SOCKET)
                case "failed":
                    failure = said
                case "lost" | "slow":
                    with contextlib.suppress(trio.WouldBlock):
                        self._tell_alarm.send_nowait(Alarm(address, said, event.get("event") == "lost"))
        status = await cell.wait()
        if cell.broken_limit:
            raise CellError(f"the head's cell had to end: {cell.broken_limit}")
        said = failure or (cell.stderr_tail().strip().splitlines() or ["it said nothing"])[-1]
        raise CellError(
            f"the head's cell ended with status {status}: {one_line(said, 500)}",
            remedy="run `edgellm doctor`",
        )


@asynccontextmanager
async def open_head(
    network: Network,
    switchboard: Switchboard,
    machine: Machine,
    request: PlanRequest,
    model_directory: Path,
    *,
    cluster: str,
    issued_at: float,
    on_progress: Callable[[Progress], None],
    kv: KvSharing | None = None,
    standby: bool = False,
) -> AsyncIterator[Head]:
    """A head that runs here and waits for members; gone when the context ends.

    `model_directory` needs to hold config and tokenizer only; `kv` says how the members will share their KV cache, if they do;
    with `standby` members are ready to be formed anew.

    Raises CellError when the head fails, also out of the body.
    """
    with open_door(reachable_hosts(network.addresses)) as door:
        own = HeadDoor(network.peer, door.identity.certificate_der, door.endpoints, _bare(network.addresses))
        alone = head_alone(
            request,
            own,
            cluster=cluster,
            token=secrets.token_hex(32),
            issued_at=issued_at,
            kv=kv,
            standby=standby,
        )
        async with (
            machine.open_member(switchboard, alone, alone.head, door, model_directory) as member,
            # Inside the member's context, so that its end, when the body leaves, is not taken for a failure.
            trio.open_nursery() as nursery,
            member.open_engine(member.engine_socket) as engine,
        ):
            head = Head(alone, member, engine)
            nursery.start_soon(head.watch, on_progress)
            yield head
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def loss_explained() -> AsyncIterator[None]:
    """Holds an engine's error back for a moment, within a context that raises for the loss of a member.

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
        check_share=load.check_share,
        stall_s=load.stall_s,
    )


def _bare(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(address.rsplit("/p2p/", 1)[0] for address in addresses)
