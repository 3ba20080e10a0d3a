"""A scenario of `benchmarks.churn` in virtual time: the product's own hosts, requesters, leases and planner.

Only what is below them is simulated: network, engines and cells. Nothing in it depends on the machine that it runs on.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import trio
from trio.testing import MockClock

from benchmarks.churn import HostLife, Model, Request, Scenario
from edgellm.cluster.head import Progress
from edgellm.cluster.switchboard import Switchboard
from edgellm.discovery.collect import SequenceBook
from edgellm.discovery.publish import Publisher
from edgellm.errors import EdgeError
from edgellm.hosting.runner import CellRunner
from edgellm.hosting.service import Advertiser
from edgellm.leasing.lease import Book
from edgellm.leasing.serve import LeaseServer
from edgellm.models.light import LightStore
from edgellm.models.manifest import digest
from edgellm.p2p.identity import Identity
from edgellm.requester.ask import ask
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import OpenedCluster, Requester
from edgellm.requester.timeline import Span
from edgellm.testing.memory_network import MemoryHub, MemoryNetwork, open_hub
from edgellm.testing.simulated import Pace, SimulatedMachine, greedy
from edgellm.types.advert import Device, Engine, ModelOffer
from edgellm.types.model import ModelFile, ModelManifest
from edgellm.types.plan import ClusterPlan
from edgellm.types.request import Piece, Question, Sampling

EPOCH = 1_800_000_000.0
LATENCY_S = 0.025
ENGINE = Engine("vllm", "cuda", (("python", "3.11"), ("ray", "2.60.0"), ("vllm", "0.32.0")))
FROZEN_FOR_GOOD_S = 600.0
"""Then its connections are gone, too."""
SETTLED_S = 60.0
"""After the last answer, by when all leases must have ended."""
PAUSE_S = 2.0
"""A longer gap within an answer is a pause: no token takes so long by itself."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request."""

    request: Request
    failure: str
    """Empty: it was answered."""
    tokens: int
    wrong_tokens: int
    """Lost, doubled or other than the undisturbed answer's."""
    first_token_s: float
    pauses_s: tuple[float, ...]
    took_s: float
    hosts: int


@dataclass(frozen=True, slots=True)
class Results:
    outcomes: tuple[Outcome, ...]
    left: Counter[str]
    """Hosts by how they left."""
    left_while_leased: int
    present_at_hours: tuple[int, ...]
    gone_within_hours: tuple[int, ...]
    """Of those that were there at the beginning of each hour, how many were not at its end."""
    leases_left_behind: int
    cells_left_behind: int
    virtual_s: float
    fingerprint: str
    """Equal for two runs of one scenario."""


def now() -> float:
    return EPOCH + trio.current_time()


def identity(kind: str, index: int, seed: int) -> Identity:
    return Identity.from_seed(hashlib.sha256(f"{seed}/{kind}/{index}".encode()).digest())


def manifests(models: Sequence[Model]) -> dict[str, ModelManifest]:
    """What hosts serve of each model: a real manifest over an invented model's files."""
    light = ModelFile("config.json", 2, hashlib.sha256(b"{}").hexdigest())
    return {
        model.name: ModelManifest(
            (light, ModelFile("model.safetensors", model.shape.weights_bytes, _sha256(model))), model.shape
        )
        for model in models
    }


def _sha256(model: Model) -> str:
    return hashlib.sha256(model.name.encode()).hexdigest()


@dataclass
class _Watcher:
    """Notes what one request is told (`edgellm.requester.ask.Watcher`)."""

    expected: list[int]
    begun: float = field(default_factory=trio.current_time)
    at: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    hosts: int = 0

    def progress(self, progress: Progress) -> None:
        pass

    def ready(self, opened: OpenedCluster, *, asked_s_ago: float = 0.0) -> None:
        self.hosts = len(opened.cluster.plan.workers)

    def timeline(self, spans: Sequence[Span]) -> None:
        pass

    def piece(self, piece: Piece) -> None:
        self.tokens += piece.token_ids
        self.at += [trio.current_time()] * len(piece.token_ids)

    def outcome(self, request: Request, failure: str) -> Outcome:
        wrong = sum(mine != right for mine, right in zip(self.tokens, self.expected, strict=False))
        wrong += max(0, len(self.tokens) - len(self.expected))
        if not failure:
            wrong += max(0, len(self.expected) - len(self.tokens))
        gaps = [later - sooner for sooner, later in zip(self.at, self.at[1:], strict=False)]
        return Outcome(
            request,
            failure,
            len(self.tokens),
            wrong,
            self.at[0] - self.begun if self.at else 0.0,
            tuple(gap for gap in gaps if gap > PAUSE_S),
            trio.current_time() - self.begun,
            self.hosts,
        )


class _Swarm:
    def __init__(self, scenario: Scenario, hub: MemoryHub, store: LightStore) -> None:
        self.scenario = scenario
        self.hub = hub
        self.store = store
        self.manifests = manifests(scenario.models)
        self.models = {digest(self.manifests[model.name]): model for model in scenario.models}
        self.offers = {
            model.name: ModelOffer(
                model.name, name, model.shape.layers, model.shape.weights_bytes, model.shape.max_context
            )
            for name, model in self.models.items()
        }
        self.present: dict[int, tuple[LeaseServer, SimulatedMachine]] = {}
        self.bandwidth_bytes_s: dict[str, float] = {}
        self.left: Counter[str] = Counter()
        self.left_while_leased = 0
        self.outcomes: list[Outcome] = []
        self.log = hashlib.sha256()
        self.chance = random.Random(scenario.seed + 1)

    def note(self, line: str) -> None:
        self.log.update(f"{trio.current_time():.6f} {line}\n".encode())

    # --- hosts

    async def live(self, life: HostLife) -> None:
        await trio.sleep_until(life.comes_at)
        network = self.hub.join(identity("host", life.index, self.scenario.seed))
        server, publisher, machine = await self._lend(life, network)
        self.present[life.index] = (server, machine)
        if life.comes_at:
            self.note(f"host {life.index} comes")
        await trio.sleep_until(life.leaves_at)
        self.left[life.leaving] += 1
        self.left_while_leased += bool(server.book.leases)
        self.note(f"host {life.index} leaves: {life.leaving}, leases {len(server.book.leases)}")
        if life.leaving == "drain":
            publisher.withdraw()
            await server.drain(life.grace_s)
        elif life.leaving == "freeze":
            self.hub.freeze(network.peer)
            if life.thaws_after_s is not None:
                await trio.sleep(life.thaws_after_s)
                self.hub.thaw(network.peer)
                self.note(f"host {life.index} is back")
                return
            await trio.sleep(FROZEN_FOR_GOOD_S)
            self.hub.thaw(network.peer)
        del self.present[life.index]
        self.hub.kill(network.peer)

    async def _lend(
        self, life: HostLife, network: MemoryNetwork
    ) -> tuple[LeaseServer, Publisher, SimulatedMachine]:
        kind = life.kind
        self.bandwidth_bytes_s[network.peer] = kind.bandwidth_bytes_s
        device = Device("0", "cuda", kind.name, kind.memory_bytes, kind.bandwidth_bytes_s, kind.flops)
        offers = tuple(self.offers[name] for name in life.models)
        book = Book((device,), offers, ENGINE, ("overlay",), max_leases=1)
        machine = SimulatedMachine(self._pace, self.hub.answers)
        directories = {offer.digest: Path("/model") for offer in offers}
        runner = CellRunner(network, Switchboard(network), machine, directories)
        advertiser = Advertiser(f"host-{life.index}", network.peer, lambda: ("/memory/1",), book, now=now)
        server = LeaseServer(network, book, runner, now=now, changed=advertiser.use)
        server.attach()
        publisher = Publisher(network, advertiser.current)
        await publisher.announce()
        return server, publisher, machine

    def _pace(self, plan: ClusterPlan) -> Pace:
        """A bring-up takes 15 s to 40 s, as it is measured; the rest follows from the hosts' bandwidth."""
        shape = self.models[plan.digest].shape
        token_s = sum(
            sum(shape.layer_bytes[worker.first_layer : worker.end_layer])
            / self.bandwidth_bytes_s[worker.peer]
            + 2 * LATENCY_S
            + 0.004
            for worker in plan.workers
        )
        load_s = 15 + 25 * self.chance.random() + shape.weights_bytes / len(plan.workers) / 2e9
        return Pace(load_s=load_s, prefill_tok_s=2000.0, token_s=token_s)

    # --- requests

    def requester(self, index: int) -> Requester:
        network = self.hub.join(identity("requester", index, self.scenario.seed))
        return Requester(
            network=network,
            switchboard=Switchboard(network),
            machine=SimulatedMachine(self._pace, self.hub.answers),
            store=self.store,
            book=SequenceBook(),
            now=now,
        )

    async def put(self, request: Request, requester: Requester) -> None:
        await trio.sleep_until(request.asked_at)
        question = Question(
            token_ids=request.prompt, sampling=Sampling(max_tokens=request.max_tokens, temperature=0.0)
        )
        watcher = _Watcher(list(islice(greedy(request.prompt), request.max_tokens)))
        failure = ""
        try:
            await ask(requester, request.model, question, Wanted(), watcher)
        except EdgeError as error:
            failure = f"{type(error).__name__}: {error}"
        outcome = watcher.outcome(request, failure)
        self.outcomes.append(outcome)
        self.note(f"request {request.index}: {outcome.tokens} tokens, {len(outcome.pauses_s)} pauses")

    def left_behind(self, requesters: Sequence[Requester]) -> tuple[int, int]:
        """Leases, and cells, of hosts that are there and of requesters."""
        heads = [requester.machine for requester in requesters]
        leases = sum(len(server.book.leases) for server, _ in self.present.values())
        cells = sum(len(machine.cells) for _, machine in self.present.values())
        return leases, cells + sum(len(head.cells) for head in heads if isinstance(head, SimulatedMachine))


async def run(scenario: Scenario) -> Results:
    """The whole scenario, to the end of its last answer. Within `simulated`."""
    with tempfile.TemporaryDirectory(prefix="edgellm-simulation-") as directory:
        async with open_hub(clock=now) as hub:
            hub.latency_s = LATENCY_S
            swarm = _Swarm(scenario, hub, LightStore(Path(directory)))
            for manifest in swarm.manifests.values():
                swarm.store.keep(manifest, {"config.json": b"{}"})
            requesters = [swarm.requester(index) for index in range(scenario.requesters)]
            async with trio.open_nursery() as lives:
                for life in scenario.hosts:
                    lives.start_soon(swarm.live, life)
                async with trio.open_nursery() as requests:
                    for request in scenario.requests:
                        requests.start_soon(swarm.put, request, requesters[request.requester])
                await trio.sleep(SETTLED_S)
                leases, cells = swarm.left_behind(requesters)
                virtual_s = trio.current_time()
                lives.cancel_scope.cancel()
    hours = [float(hour) * 3600 for hour in range(int(scenario.lasts_s // 3600))]
    present = [[life for life in scenario.hosts if life.comes_at <= hour < life.leaves_at] for hour in hours]
    return Results(
        outcomes=tuple(sorted(swarm.outcomes, key=lambda outcome: outcome.request.index)),
        left=swarm.left,
        left_while_leased=swarm.left_while_leased,
        present_at_hours=tuple(len(lives) for lives in present),
        gone_within_hours=tuple(
            sum(life.leaves_at <= hour + 3600 for life in lives)
            for hour, lives in zip(hours, present, strict=True)
        ),
        leases_left_behind=leases,
        cells_left_behind=cells,
        virtual_s=virtual_s,
        fingerprint=swarm.log.hexdigest()[:16],
    )


def simulated(scenario: Scenario) -> Results:
    """Runs a scenario in virtual time, the same way each time."""
    # Trio shuffles the order of tasks that are ready together; for a replay it has to be the same shuffle.
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio._core._run._r.seed(scenario.seed)
    return trio.run(run, scenario, clock=MockClock(autojump_threshold=0))
