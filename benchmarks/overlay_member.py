"""One member for `benchmarks.overlay`: an overlay, cells on demand. Its settings come as JSON on the first line of stdin.

With "node" in the settings it is a libp2p node as well, and carries what cannot be dialled directly. Then each line of
stdin is the arguments of `overlay_traffic.py` for a cell that runs until it ends or prints its first event, which goes
to stdout; a serving cell stays.
"""

from __future__ import annotations

import base64
import json
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from benchmarks import overlay_traffic
from edgellm.cells.cell import Cell, default_environment, open_cell
from edgellm.cells.spec import CellSpec, Mount
from edgellm.cluster.switchboard import Switchboard
from edgellm.overlay.overlay import (
    MemberIdentity,
    Overlay,
    OverlayMember,
    OverlaySpec,
    bind_listener,
    open_overlay,
)
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import Stream
from edgellm.p2p.node import NodeConfig, open_node
from edgellm.types.plan import ClusterPlan, Member

TRAFFIC = Path("/overlay_traffic.py")


async def main() -> None:
    settings: dict[str, Any] = json.loads(sys.stdin.readline())
    own = settings["own"]
    plan = tuple(
        OverlayMember(
            member["address"],
            base64.b64decode(member["certificate"]),
            tuple((host, port) for host, port in member["endpoints"]),
        )
        for member in settings["members"]
    )
    identity = MemberIdentity(
        next(member.certificate_der for member in plan if member.address == own), settings["key"].encode()
    )
    overlay_spec = OverlaySpec(own, plan)
    with tempfile.TemporaryDirectory() as directory:
        runtime = Path(directory)
        listener = bind_listener(settings["host"], settings["port"])
        async with (
            _joined(settings, overlay_spec, runtime, listener, identity),
            trio.open_nursery() as nursery,
        ):
            print(json.dumps({"event": "ready"}), flush=True)
            while line := await trio.to_thread.run_sync(sys.stdin.readline):
                arguments = line.split()
                spec = CellSpec(
                    argv=(sys.executable, str(TRAFFIC), *arguments),
                    runtime_directory=runtime,
                    environment=default_environment(),
                    read_only=(Mount(Path(overlay_traffic.__file__), TRAFFIC),),
                    address=own,
                    nice=0,
                )
                await nursery.start(_run, spec, arguments[0] == "serve")
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _joined(
    settings: dict[str, Any],
    spec: OverlaySpec,
    runtime: Path,
    listener: socket.socket,
    identity: MemberIdentity,
) -> AsyncIterator[Overlay]:
    """The overlay; where there is a node, joined to its switchboard."""
    node = settings.get("node")
    if node is None:
        async with open_overlay(spec, runtime, listener, identity, _no_stream) as overlay:
            yield overlay
        return
    config = NodeConfig(
        Identity.from_seed(bytes.fromhex(node["seed"])),
        listen=tuple(node["listen"]),
        relays=tuple(node["relays"]),
    )
    plan = _plan(settings["members"])
    async with open_node(config) as network:
        switchboard = Switchboard(network)
        opener = switchboard.opener(plan, spec.own_address)
        async with open_overlay(spec, runtime, listener, identity, opener) as overlay:
            with switchboard.connect(plan, spec.own_address, overlay):
                yield overlay


def _plan(members: list[dict[str, Any]]) -> ClusterPlan:
    """What a switchboard needs of a plan."""
    return ClusterPlan(
        cluster="07",
        digest="",
        tensor_parallel=1,
        members=tuple(
            Member(member["peer"], member["address"], b"", (), addresses=tuple(member["addresses"]))
            for member in members
        ),
        fabric="overlay",
        max_model_len=0,
        kv_cache_bytes=0,
        subnet="10.88.7.0/24",
        cluster_token="",
        issued_at=0.0,
    )


async def _run(spec: CellSpec, stays: bool, task_status: Any) -> None:
    async with open_cell(spec) as cell:
        await _tell_first(cell)
        if stays:
            task_status.started()
            await cell.wait()
    task_status.started()


async def _tell_first(cell: Cell) -> None:
    try:
        event: dict[str, object] = await cell.events.receive()
    except trio.EndOfChannel:
        event = {"event": "ended", "said": cell.stderr_tail()}
    print(json.dumps(event), flush=True)


async def _no_stream(address: str, port: int) -> Stream:
    raise OSError(f"{address} cannot be dialled")


if __name__ == "__main__":
    trio.run(main)
