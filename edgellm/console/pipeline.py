"""A session's pipeline, as the pages draw it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.console import views

HUES = 6
"""How many colours stages have; the seventh looks like the first."""


@dataclass(frozen=True, slots=True)
class Node:
    """A stage of a pipeline."""

    stage: int
    name: str
    peer: str
    layers: str
    """As "0–11"."""
    layer_count: int
    x: float
    """Of its layers among all, in percent."""
    width: float
    hue: int
    ranks: tuple[str, ...]
    """Its devices that share every layer: tensor parallelism."""
    latency_s: float | None
    here: bool
    """It was started from this console."""
    seen: bool
    """In the last look at the swarm."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    nodes: tuple[Node, ...]
    layers: int

    @property
    def sentence(self) -> str:
        route = ", then ".join(f"{node.name} with layers {node.layers}" for node in self.nodes)
        return f"Each token passes {route}, and comes back to the head on this machine."


def pipeline(session: views.Session, swarm: views.Swarm | None) -> Pipeline | None:
    """The drawing of a session's stages; None while it has none."""
    if not session.stages:
        return None
    layers = max(1, max(stage.end_layer for stage in session.stages))
    peers = {peer.peer: peer for peer in swarm.peers} if swarm else {}
    looked = swarm is not None and swarm.seen_at is not None
    nodes = []
    for stage in sorted(session.stages, key=lambda stage: stage.stage):
        peer = peers.get(stage.peer)
        kind = peer.engine.device_kind if peer else "device"
        count = stage.end_layer - stage.first_layer
        nodes.append(
            Node(
                stage=stage.stage,
                name=stage.name or f"…{stage.peer[-6:]}",
                peer=stage.peer,
                layers=f"{stage.first_layer}–{stage.end_layer - 1}" if count > 1 else f"{stage.first_layer}",
                layer_count=count,
                x=100 * stage.first_layer / layers,
                width=100 * count / layers,
                hue=stage.stage % HUES,
                ranks=tuple(f"{kind} {rank}" for rank in range(max(1, session.tensor_parallel))),
                latency_s=stage.latency_s,
                here=bool(peer and peer.host),
                seen=peer is not None or not looked,
            )
        )
    return Pipeline(tuple(nodes), layers)
