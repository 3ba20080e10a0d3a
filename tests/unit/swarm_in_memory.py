"""A swarm in one process: hosts as `edgellm host` builds them, over a network in memory and machines without cells."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from edgellm.cluster.head import Progress
from edgellm.cluster.switchboard import Switchboard
from edgellm.discovery.collect import SequenceBook
from edgellm.discovery.publish import Publisher
from edgellm.hosting.model_files import ServedModel, serve_model_files
from edgellm.hosting.runner import CellRunner
from edgellm.hosting.service import Advertiser
from edgellm.leasing.serve import LeaseServer
from edgellm.models.light import LightStore
from edgellm.models.manifest import build_manifest, digest, encode_manifest
from edgellm.requester.cluster import OpenedCluster, Requester
from edgellm.requester.timeline import Span
from edgellm.testing.memory_network import MemoryHub, MemoryNetwork
from edgellm.testing.scripted_engine import Script
from edgellm.testing.scripted_machine import ScriptedMachine
from edgellm.types.advert import ModelOffer
from edgellm.types.request import Piece
from tests.unit.samples import book

TINY = Path(__file__).parents[2] / "models" / "tiny"


@dataclass
class Host:
    network: MemoryNetwork
    machine: ScriptedMachine
    server: LeaseServer

    @property
    def free(self) -> bool:
        return not self.server.book.leases and not self.machine.cells


@dataclass
class Recorder:
    """Keeps what an asker is told (`edgellm.requester.ask.Watcher`)."""

    notes: list[Progress] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    opened: OpenedCluster | None = None
    asked_s_ago: float = 0.0
    spans: Sequence[Span] = ()
    began: trio.Event = field(default_factory=trio.Event)

    def progress(self, progress: Progress) -> None:
        self.notes.append(progress)

    def ready(self, opened: OpenedCluster, *, asked_s_ago: float = 0.0) -> None:
        self.opened, self.asked_s_ago = opened, asked_s_ago

    def timeline(self, spans: Sequence[Span]) -> None:
        self.spans = spans

    def piece(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.began.set()

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def stages(self) -> list[tuple[str, int, int]]:
        assert self.opened is not None
        return [
            (stage.name, stage.first_layer, stage.end_layer) for stage in self.opened.cluster.stages.stages
        ]


async def join_host(
    hub: MemoryHub, name: str, *, directory: Path = TINY, names: Sequence[str] = ("tiny",), **lent: int
) -> Host:
    """A host of the model in `directory` under these names, advertised."""
    network = hub.join()
    machine = ScriptedMachine()
    manifest = build_manifest(directory, None)
    own = digest(manifest)
    shape = manifest.shape
    offers = tuple(ModelOffer(known, own, shape.layers, shape.weights_bytes, 2048) for known in names)
    lending = replace(book(**lent), models=offers)
    advertiser = Advertiser(name, network.peer, lambda: ("/ip4/10.0.0.1/tcp/4001",), lending)
    runner = CellRunner(network, Switchboard(network), machine, {own: directory})
    server = LeaseServer(network, lending, runner, now=time.time, changed=advertiser.use)
    light = frozenset(file.path for file in manifest.light_files)
    serve_model_files(network, {own: ServedModel(directory, encode_manifest(manifest), light)})
    server.attach()
    await Publisher(network, advertiser.current).announce()
    return Host(network, machine, server)


def join_requester(hub: MemoryHub, store: Path, script: Script | None = None) -> Requester:
    """One who asks; its head serves an engine that follows `script`."""
    network = hub.join()
    return Requester(
        network=network,
        switchboard=Switchboard(network),
        machine=ScriptedMachine(script or Script()),
        store=LightStore(store),
        book=SequenceBook(),
        now=time.time,
    )
