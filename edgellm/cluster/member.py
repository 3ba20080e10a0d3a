"""One member of a cluster, running: its overlay and its cell. The same for a head and for a worker."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import structlog
import trio

from edgellm.cells.cell import default_environment, open_cell
from edgellm.cells.spec import MODEL_PATH, RUNTIME_PATH, CellSpec, Isolation, Mount
from edgellm.cluster.commons import Commons, open_commons
from edgellm.cluster.door import Door, may_dial
from edgellm.cluster.limits import cell_limits
from edgellm.cluster.scratch import scratch_directory
from edgellm.cluster.sockets import keep_socket
from edgellm.cluster.switchboard import PlanInForce, Switchboard
from edgellm.engine.backend import Backend, DeviceKind, MemberSpec, Role
from edgellm.engine.backend import KvSharing as EngineKvSharing
from edgellm.engine.client import EngineClient, open_engine
from edgellm.errors import CellError
from edgellm.overlay.overlay import Overlay, OverlayMember, OverlaySpec, open_overlay
from edgellm.types.plan import ClusterPlan, KvSharing, Member

log = structlog.get_logger(__name__)

HEAD_PORT = 6379
"""Ray's head; in a cell of its own every port is free."""
ENGINE_SOCKET = "engine.sock"
BLOCKS_SOCKET = "blocks.sock"
CELL_GOES_S = 10.0
"""How long a cell that is killed may take to be gone: a thousand processes take some."""
_SHOWN = "c"
"""Of a member's directory, what its cell sees. Short, as sockets lie in it."""


class CellHandle(Protocol):
    """The part of a cell that clusters use (`edgellm.cells.cell.Cell`)."""

    @property
    def events(self) -> trio.MemoryReceiveChannel[dict[str, object]]: ...

    @property
    def broken_limit(self) -> str: ...

    async def wait(self) -> int: ...

    def stderr_tail(self) -> str: ...


@dataclass(frozen=True, slots=True)
class RunningMember:
    cell: CellHandle
    engine_socket: Path
    """Where the head's engine serves; nothing is there for a worker."""
    model_path: str
    """Where the engine sees the model."""
    amend: Callable[[ClusterPlan], Awaitable[None]]
    """Goes by another plan of the same cluster from now on, in which this member keeps its address. Raises CellError."""
    open_engine: Callable[[Path], AbstractAsyncContextManager[EngineClient]] = open_engine
    """What makes a client of the engine."""
    shown: Path | None = None
    """Where the cell makes its sockets; None: where they are used."""
    transferred_bytes: Callable[[], int] = lambda: 0
    """Between its cell and the other members so far, both ways, as measured outside of the cell."""

    def socket(self, name: str) -> Path:
        """One that the cell has said it serves on. Raises CellError where it is none."""
        kept = self.engine_socket.with_name(name)
        if self.shown is not None:
            keep_socket(self.shown / name, kept)
        return kept


class PieceServer(Protocol):
    """The part of a node that serves KV pieces to cells (`edgellm.kv.node.KvNode`)."""

    def serve(self, kv: KvSharing, socket: Path) -> AbstractAsyncContextManager[None]:
        """Serves `proto/blocks.proto` on `socket` while the context lasts. Raises CellError."""


class Machine(Protocol):
    """Runs members of clusters: `CellMachine` really, `edgellm.testing.scripted_machine` for tests."""

    def open_member(
        self, switchboard: Switchboard, plan: ClusterPlan, own: Member, door: Door, model_directory: Path
    ) -> AbstractAsyncContextManager[RunningMember]:
        """Starts `own`, a member of `plan`; everything of it is gone when the context ends.

        Raises CellError when its cell cannot be made.
        """


@dataclass(frozen=True, slots=True)
class CellMachine:
    """This machine: each member gets an overlay and a cell."""

    backend: Backend
    runtime: Path
    """A new directory is made in it for each member."""
    threads: int
    isolation: Isolation = "bwrap"
    pieces: PieceServer | None = None
    """None: cells compute everything themselves."""

    def open_member(
        self, switchboard: Switchboard, plan: ClusterPlan, own: Member, door: Door, model_directory: Path
    ) -> AbstractAsyncContextManager[RunningMember]:
        return _open_member(self, switchboard, plan, own, door, model_directory)


@asynccontextmanager
async def _open_member(
    machine: CellMachine,
    switchboard: Switchboard,
    plan: ClusterPlan,
    own: Member,
    door: Door,
    model_directory: Path,
) -> AsyncIterator[RunningMember]:
    with scratch_directory(machine.runtime) as directory:
        shown = directory / _SHOWN
        shown.mkdir(mode=0o700)
        async with AsyncExitStack() as stack:
            in_force = PlanInForce(plan)
            overlay: Overlay | None = None
            transferred_bytes: Callable[[], int] = lambda: 0  # noqa: E731 - there is nothing to count
            if plan.fabric == "overlay":
                overlay = await stack.enter_async_context(
                    open_overlay(
                        OverlaySpec(own.address, _overlay_members(plan, door)),
                        shown,
                        door.listener,
                        door.identity,
                        switchboard.opener(in_force, own.address),
                    )
                )
                stack.enter_context(switchboard.connect(in_force, own.address, overlay))
                transferred_bytes = overlay.transferred_bytes
                nursery = await stack.enter_async_context(trio.open_nursery())
                stack.callback(nursery.cancel_scope.cancel)
                nursery.start_soon(_fail_with, overlay)

            async def amend(amended: ClusterPlan) -> None:
                in_force.plan = amended
                if overlay is not None:
                    await overlay.admit(_overlay_members(amended, door))

            # Before the cell is there, which could put something in the way.
            await serve_pieces(stack, machine.pieces, plan, own, shown)
            commons = None
            if machine.isolation == "none":
                commons = stack.enter_context(open_commons(plan.cluster, model_directory))
            spec = _cell_spec(machine, plan, own, shown, model_directory, commons)
            cell = await stack.enter_async_context(open_cell(spec))
            stack.callback(
                lambda: log.debug("what a cell said", address=own.address, said=cell.stderr_tail())
            )
            yield RunningMember(
                cell,
                directory / ENGINE_SOCKET,
                str(spec.model_path),
                amend,
                shown=shown,
                transferred_bytes=transferred_bytes,
            )


async def _fail_with(overlay: Overlay) -> None:
    """Raises CellError when its carrier ends: the cell has no network any more, and would only seem to be there."""
    await overlay.wait_dead()
    # A cell that is killed takes its carrier with it, and says better what has happened once all of it is gone.
    await trio.sleep(CELL_GOES_S)
    raise CellError("the overlay's carrier has ended")


async def serve_pieces(
    stack: AsyncExitStack, pieces: PieceServer | None, plan: ClusterPlan, own: Member, directory: Path
) -> None:
    """Serves KV pieces in a worker's directory, where its cluster shares and its node does; else the cell finds nobody."""
    if plan.kv is None or pieces is None or own is plan.head:
        return
    try:
        await stack.enter_async_context(pieces.serve(plan.kv, directory / BLOCKS_SOCKET))
    except CellError as error:
        log.warning("a cell shares no KV pieces: its socket cannot be made", error=str(error))


def _overlay_members(plan: ClusterPlan, door: Door) -> tuple[OverlayMember, ...]:
    return tuple(
        OverlayMember(
            address=member.address,
            certificate_der=member.overlay_certificate,
            endpoints=tuple(
                (endpoint.host, endpoint.port)
                for endpoint in may_dial(member.overlay_endpoints, door.endpoints)
            ),
        )
        for member in plan.everyone
    )


def _cell_spec(
    machine: CellMachine,
    plan: ClusterPlan,
    own: Member,
    directory: Path,
    model_directory: Path,
    commons: Commons | None,
) -> CellSpec:
    role: Role = "head" if own is plan.head else "worker"
    kind: DeviceKind = machine.backend.device_kind()
    inside = RUNTIME_PATH if commons is None else directory
    model_path = MODEL_PATH if commons is None else commons.model
    member = MemberSpec(
        role=role,
        address=own.address,
        head_address=plan.head.address,
        head_port=HEAD_PORT,
        cluster_token=plan.cluster_token,
        interface="edge0" if plan.fabric == "overlay" else _interface_of(own.address),
        device_kind=kind,
        devices=own.devices,
        threads=machine.threads,
        socket_path=str(inside / ENGINE_SOCKET) if role == "head" else "",
        model_path=str(model_path),
        stage_index=plan.workers.index(own) if own in plan.workers else -1,
        standby=plan.standby,
        kv=_engine_sharing(plan, role, inside),
    )
    return CellSpec(
        argv=machine.backend.command(member),
        runtime_directory=directory,
        environment={
            **default_environment(),
            **machine.backend.environment(member),
            **(commons.environment() if commons is not None else {}),
        },
        read_only=tuple(Mount(path, path) for path in machine.backend.read_only_paths()),
        model_directory=model_directory if commons is None else commons.model,
        address=own.address if plan.fabric == "overlay" else None,
        subnet=plan.subnet,
        devices=_device_nodes(kind, own.devices),
        fabric="overlay" if plan.fabric == "overlay" else "direct",
        isolation=machine.isolation,
        limits=cell_limits(
            kind,
            devices=len(own.devices),
            memory_bytes=own.memory_bytes,
            threads=machine.threads,
            usable_threads=usable_threads(),
            is_head=role == "head",
            standby=plan.standby,
        ),
        # A worker connects to sockets that are there already.
        writes_runtime=role == "head",
    )


def _engine_sharing(plan: ClusterPlan, role: Role, inside: Path) -> EngineKvSharing | None:
    if plan.kv is None:
        return None
    if role == "head":
        return EngineKvSharing()
    return EngineKvSharing(
        socket_path=str(inside / BLOCKS_SOCKET), scope_secret=plan.kv.secret.hex(), weights=plan.digest
    )


def _device_nodes(kind: DeviceKind, devices: tuple[str, ...]) -> tuple[Path, ...]:
    """The device files of the lease's GPUs, with the control nodes that CUDA needs; no others."""
    if kind != "cuda" or not devices:
        return ()
    shared = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
    nodes = [Path(node) for node in (*shared, *(f"/dev/nvidia{device}" for device in devices))]
    return tuple(node for node in nodes if node.exists())


def _interface_of(address: str) -> str:
    """The network interface that holds `address` on this machine, for the direct fabric."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return name
    return "lo"


def usable_threads() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))
