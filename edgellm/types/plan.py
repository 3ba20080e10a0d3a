"""What is asked of a cluster, and the plan that answers it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgellm.types.advert import Device, Engine
from edgellm.types.model import ModelShape


@dataclass(frozen=True, slots=True)
class Prediction:
    decode_tok_s: float
    prefill_tok_s: float


@dataclass(frozen=True, slots=True)
class Workload:
    """What a plan is to be fast at: prompts of so many tokens, each with an answer of so many."""

    prompt_tokens: int = 0
    """0 where it is not known: then the speed of answers alone counts."""
    answer_tokens: int = 1
    prefill_share: float = 1.0
    """How much of the predicted prefill speed engines have been seen to reach with this model."""

    def seconds(self, prediction: Prediction) -> float:
        """From the question to the last token of its answer."""
        prefill_s = self.prompt_tokens / (prediction.prefill_tok_s * self.prefill_share)
        return prefill_s + self.answer_tokens / prediction.decode_tok_s


@dataclass(frozen=True, slots=True)
class PlanRequest:
    model: str
    """As the user named it; for messages."""
    digest: str
    shape: ModelShape
    context: int
    """Tokens that one sequence may grow to, prompt and answer together."""
    sequences: int = 1
    """How many sequences of that length the KV cache shall hold at once."""
    tensor_parallel: int | None = None
    """None leaves it to the planner."""
    pipeline_parallel: int | None = None
    peers: tuple[str, ...] = ()
    """Only these, when not empty: peer ids, unambiguous prefixes of them, or host names."""
    fabric: str = "overlay"
    shares_kv: bool = False
    """Whether the members shall keep and find KV pieces, which takes some of their memory."""
    workload: Workload = Workload()
    min_tok_s: float = 0.0
    """A plan that is expected to decode more slowly is none."""
    max_load: float = 1.0
    """Hosts whose load (`edgellm.types.advert.HostAdvert.load`) is above this are left out."""
    lasts_s: float = 0.0
    """How long the cluster is needed, from now on: hosts that stop lending sooner are left out."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What this user's own experience says of a host, in words; "" where it says nothing against it."""

    excluded: str = ""
    """Why it is not to be used at all."""
    doubt: str = ""
    """Why it is to be used only where nothing can be done without it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host that offers the asked model, as the planner sees it."""

    peer: str
    name: str
    digest: str
    engine: Engine
    devices: tuple[Device, ...]
    """Free ones only, memory as free now."""
    fabrics: tuple[str, ...]
    round_trip_s: float = 0.001
    load: float = 0.0
    lends_for_s: float = math.inf
    """Until it stops lending, where it said when; counted from when it was asked."""
    standing: Standing = Standing()


@dataclass(frozen=True, slots=True)
class Stage:
    """One pipeline stage: one host, a run of layers [first_layer, end_layer), `tensor_parallel` of its devices."""

    peer: str
    name: str
    first_layer: int
    end_layer: int
    memory_bytes: int
    """For each device: its share of the weights, KV cache, and overhead."""
    devices: tuple[str, ...] = ()
    """What the planner had in mind; the host decides when it grants."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The planner's result: stages in pipeline order, all of one tensor-parallel degree."""

    request: PlanRequest
    engine: Engine
    tensor_parallel: int
    stages: tuple[Stage, ...]
    kv_cache_bytes: int
    """For each rank: enough for the rank with the most layers."""
    prediction: Prediction

    @property
    def pipeline_parallel(self) -> int:
        return len(self.stages)


@dataclass(frozen=True, slots=True)
class Endpoint:
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Member:
    """A peer of a cluster, as the signed plan names it. The head has no lease and no layers."""

    peer: str
    address: str
    overlay_certificate: bytes
    overlay_endpoints: tuple[Endpoint, ...]
    lease: str = ""
    first_layer: int = 0
    end_layer: int = 0
    devices: tuple[str, ...] = ()
    memory_bytes: int = 0
    addresses: tuple[str, ...] = ()
    """Multiaddrs without /p2p, for members that can reach it over libp2p only."""


@dataclass(frozen=True, slots=True)
class KvSharing:
    """How the members of a cluster share KV pieces."""

    scope: str
    """"session", "swarm" or "public": who else can read them."""
    scope_id: bytes
    secret: bytes = field(repr=False)
    """All keys of the scope follow from it; no node's log, disk or DHT ever holds it."""
    tracker: str
    """The peer that keeps the records of the scope."""
    tracker_addresses: tuple[str, ...] = ()
    prefill_tok_s: float = 0.0
    """Predicted for the whole cluster; 0: not known."""


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What the requester signs and every member checks: who is in, at which address, with which layers."""

    cluster: str
    digest: str
    tensor_parallel: int
    members: tuple[Member, ...]
    """The head first, then the stages in pipeline order."""
    fabric: str
    max_model_len: int
    kv_cache_bytes: int
    subnet: str
    cluster_token: str
    issued_at: float
    kv: KvSharing | None = None
    """None: this cluster shares no KV cache."""
    spares: tuple[Member, ...] = ()
    """They run no layers. A later plan of the same cluster may give them some."""
    standby: bool = False
    """Whether members keep ready what their next ranks need, so that the loss of another is a short pause."""

    @property
    def everyone(self) -> tuple[Member, ...]:
        return self.members + self.spares

    @property
    def head(self) -> Member:
        return self.members[0]

    @property
    def workers(self) -> tuple[Member, ...]:
        return self.members[1:]

    def member(self, peer: str) -> Member | None:
        return next((member for member in self.everyone if member.peer == peer), None)

    def at(self, address: str) -> Member | None:
        return next((member for member in self.everyone if member.address == address), None)

    def of_lease(self, lease: str) -> Member | None:
        """Who takes part by this lease."""
        return next((member for member in self.everyone[1:] if member.lease == lease), None)
