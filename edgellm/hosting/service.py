"""The whole of `edgellm host`: hold the models, measure, join, advertise, lease, and leave well."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import structlog
import trio

from edgellm.cells.cell import open_cell
from edgellm.cells.spec import CellSpec
from edgellm.cluster.member import CellMachine, usable_threads
from edgellm.cluster.scratch import sweep
from edgellm.cluster.switchboard import Switchboard
from edgellm.discovery.publish import Publisher
from edgellm.engine.registry import load_backend
from edgellm.errors import CellError, unwrapped
from edgellm.hosting.control import control_socket
from edgellm.hosting.devices import lend, measure
from edgellm.hosting.kv import open_host_kv
from edgellm.hosting.lending import Lending
from edgellm.hosting.model_files import ServedModel, serve_model_files
from edgellm.hosting.options import HostOptions
from edgellm.hosting.quota_keeper import QuotaKeeper
from edgellm.hosting.runner import CellRunner
from edgellm.leasing.lease import Book
from edgellm.leasing.serve import LeaseServer
from edgellm.models.manifest import build_manifest, digest, encode_manifest
from edgellm.models.resolve import resolve
from edgellm.p2p.identity import exclusive_identity
from edgellm.p2p.node import NodeConfig
from edgellm.p2p.port_mapping import mappable_port
from edgellm.p2p.reachability import Verdict
from edgellm.paths import Paths
from edgellm.swarms.chosen import swarm_called
from edgellm.swarms.member_node import open_swarm_node, require_role
from edgellm.trust.accounts import HostAccounts
from edgellm.types.advert import Device, Engine, HostAdvert, ModelOffer
from edgellm.types.member import HOST

log = structlog.get_logger(__name__)

ADVERT_LIFETIME_S = 120.0
TRIAL_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class HostedModel:
    offer: ModelOffer
    directory: Path
    served: ServedModel


@dataclass(frozen=True, slots=True)
class HostSummary:
    """What a host tells its owner once it is in the swarm."""

    name: str
    peer: str
    addresses: tuple[str, ...]
    engine: Engine
    devices: tuple[Device, ...]
    models: tuple[ModelOffer, ...]
    until: float | None = None
    reached: Verdict | None = None
    """Which way others reach it, as far as is known at the start."""
    quota: tuple[str, ...] = ()
    """What is left of each part of its quota, a line each."""


class Advertiser:
    """Makes the host's current advert. Sequence numbers are milliseconds of the clock, so they grow across restarts."""

    def __init__(
        self,
        name: str,
        peer: str,
        addresses: Callable[[], tuple[str, ...]],
        book: Book,
        *,
        now: Callable[[], float] = time.time,
        closed: Callable[[], bool] = lambda: False,
    ) -> None:
        """`closed`: whether nothing is lent now though devices are free."""
        self._name = name
        self._peer = peer
        self._addresses = addresses
        self._sequence = 0
        self._now = now
        self._closed = closed
        self.book = book

    def use(self, book: Book) -> None:
        self.book = book

    def current(self) -> HostAdvert:
        now = self._now()
        self._sequence = max(self._sequence + 1, round(now * 1000))
        return make_advert(
            replace(self.book, max_leases=0) if self._closed() else self.book,
            name=self._name,
            peer=self._peer,
            addresses=self._addresses(),
            sequence=self._sequence,
            now=now,
        )


def make_advert(
    book: Book, *, name: str, peer: str, addresses: tuple[str, ...], sequence: int, now: float
) -> HostAdvert:
    """What the book says, as an advert. Pure. Devices show the memory that is free on them now."""
    devices = tuple(
        replace(device, memory_bytes=max(0, book.free_memory_bytes(device.id))) for device in book.devices
    )
    return HostAdvert(
        peer=peer,
        name=name,
        sequence=sequence,
        issued_at=now,
        expires_at=min(now + ADVERT_LIFETIME_S, book.lends_until or math.inf),
        addresses=addresses,
        engine=book.engine,
        devices=devices,
        free_devices=book.free_devices,
        free_memory_bytes=sum(device.memory_bytes for device in devices),
        models=book.models,
        fabrics=book.fabrics,
        free_leases=book.free_leases,
        draining=book.draining,
        lent_memory_bytes=sum(device.memory_bytes for device in book.devices),
        lends_until=book.lends_until,
    )


async def run_host(
    options: HostOptions,
    paths: Paths,
    *,
    stop: trio.Event,
    on_step: Callable[[str], None],
    on_ready: Callable[[HostSummary], None],
) -> None:
    """Hosts until `stop` is set or the time to lend is over, then drains: no new leases, `grace_s` for running ones, the
    advert withdrawn. Meanwhile the owner can pause it (`edgellm.hosting.control`).

    Raises EdgeErrors: UsageError (identity in use, port taken), MembershipError (no member, or no longer), ModelError,
    CellError (no sandbox here), DiscoveryError (no bootstrap peer answers), EngineError.
    """
    name = options.name or socket.gethostname()
    home = swarm_called(options.swarm, paths)
    with exclusive_identity(home.identity if home else paths.identity) as identity, unwrapped():
        if home is not None:
            require_role(home, HOST)
        sweep(paths.runtime)
        on_step("checking that cells can be made")
        await try_cell(options, paths)
        backend = load_backend(options.backend)
        versions = backend.versions()
        models = [await hold_model(model, paths, on_step) for model in options.models]
        on_step("measuring devices")
        measured = await measure(backend, versions, paths.cache)
        devices = lend(
            measured,
            wanted=options.devices,
            memory_bytes=options.memory_bytes,
            free_bytes=psutil.virtual_memory().available,
        )
        book = Book(
            devices=devices,
            models=tuple(model.offer for model in models),
            engine=Engine(options.backend, backend.device_kind(), tuple(sorted(versions.items()))),
            fabrics=options.fabrics,
            max_leases=options.max_leases,
        )
        on_step("joining the swarm")
        overlay_port = options.overlay_port
        if options.map_ports and options.max_leases == 1 and not overlay_port:
            overlay_port = mappable_port()
        config = NodeConfig(
            identity=identity,
            listen=options.listen,
            announce=options.announce,
            bootstrap=options.bootstrap,
            relays=options.relays,
            stay_reachable=True,
            map_ports=options.map_ports,
            other_ports=(overlay_port,),
            mdns=options.mdns,
        )

        def member_id(peer: str) -> str:
            """A member asks under an identity of its own each time, but it is one member."""
            member = network.member(peer)
            return member.peer if member is not None else ""

        quota = QuotaKeeper(options.quota, paths.quota, now=time.time, who=member_id, tell=on_step)
        async with (
            open_swarm_node(config, home) as network,
            open_host_kv(network, paths, options.kv_quota_bytes, options.ipfs) as pieces,
        ):
            machine = CellMachine(
                backend, paths.runtime, options.threads or usable_threads(), options.isolation, pieces
            )
            runner = CellRunner(
                network,
                Switchboard(network),
                machine,
                {model.offer.digest: model.directory for model in models},
                overlay_port=overlay_port,
                quota=quota,
            )
            advertiser = Advertiser(
                name,
                network.peer,
                lambda: tuple(address.rsplit("/p2p/", 1)[0] for address in network.addresses),
                book,
                closed=lambda: quota.closed() is not None,
            )
            accounts = HostAccounts(identity, paths.state)
            leases = LeaseServer(
                network,
                book,
                runner,
                now=time.time,
                changed=advertiser.use,
                accounts=accounts,
                policy=options.policy,
                account=quota,
                origin_of=network.origin_of,
            )
            serve_model_files(network, {model.offer.digest: model.served for model in models})
            publisher = Publisher(network, advertiser.current)
            lending = Lending(
                leases, publisher, name=name, grace_s=options.grace_s, until=options.until, on_step=on_step
            )
            leases.attach()
            await publisher.announce()
            reached = network.reach.verdict if network.reach else None
            if network.reach is not None:
                network.reach.on_change = lambda now: on_step(f"reached {now}")
            on_ready(
                HostSummary(
                    name,
                    network.peer,
                    network.addresses,
                    book.engine,
                    devices,
                    book.models,
                    options.until,
                    reached,
                    tuple(quota.lines()),
                )
            )
            async with control_socket(paths.runtime, lending.obey):
                if await lending.is_over(stop):
                    await leases.idle()
                    return
            on_step(
                f"draining: no new leases; running ones have {options.grace_s:g} s (Ctrl-C again ends them now)"
            )
            lending.end()
            await leases.drain(options.grace_s)


async def hold_model(model: str, paths: Paths, on_step: Callable[[str], None]) -> HostedModel:
    """The model's files, hashed. Raises ModelError."""
    on_step(f"reading {model}")
    linked = paths.cache / "linked"
    resolved = await trio.to_thread.run_sync(lambda: resolve(model, linked=linked))
    manifest = await trio.to_thread.run_sync(build_manifest, resolved.directory, paths.cache / "hashes.json")
    offer = ModelOffer(
        name=resolved.name,
        digest=digest(manifest),
        layers=manifest.shape.layers,
        weights_bytes=manifest.shape.weights_bytes,
        max_context=manifest.shape.max_context,
    )
    light = frozenset(file.path for file in manifest.light_files)
    return HostedModel(
        offer, resolved.directory, ServedModel(resolved.directory, encode_manifest(manifest), light)
    )


async def try_cell(options: HostOptions, paths: Paths) -> None:
    """Makes a cell and lets it end, so that a machine that cannot make cells never advertises that it lends them.

    Raises CellError with the remedy.
    """
    overlay = "overlay" in options.fabrics
    directory = paths.runtime / "trial"
    directory.mkdir(mode=0o700, exist_ok=True)
    spec = CellSpec(
        argv=("/bin/true",),
        runtime_directory=directory,
        address="10.88.0.1" if overlay else None,
        fabric="overlay" if overlay else "direct",
        isolation=options.isolation,
    )
    try:
        with trio.move_on_after(TRIAL_TIMEOUT_S):
            async with open_cell(spec) as cell:
                status = await cell.wait()
            if status == 0:
                return
            said = (cell.stderr_tail().strip().splitlines() or ["it said nothing"])[-1]
            raise CellError(f"cells cannot be made on this machine: {said}", remedy="run `edgellm doctor`")
        raise CellError(
            f"a trial cell did not end within {TRIAL_TIMEOUT_S:g} s", remedy="run `edgellm doctor`"
        )
    finally:
        directory.rmdir()
