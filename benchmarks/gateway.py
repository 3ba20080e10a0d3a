"""A session's endpoint under load, against `vllm serve` over the same machines: `python -m benchmarks.gateway [--lock FILE]`,
or `make bench BENCH=gateway`.

Prints a table, writes `benchmarks/out/gateway.json`, and exits with 1 when a bar is missed. Needs root.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks import chat_load, report
from benchmarks.by_hand import Shape, server_by_hand
from benchmarks.chat_load import Address, FirstTokens, Order
from benchmarks.main import REPOSITORY, locked
from benchmarks.report import Figure
from benchmarks.session import NAME, Load, asleep, opened_session, ranks
from edgellm.sessions.registry import Registry
from edgellm.wire import session_pb2, session_pb2_grpc
from tests.system.lan import Lan
from tests.system.machine import Machine
from tests.system.swarm import TINY, Swarm

OUT = Path(__file__).parent / "out" / "gateway.json"
CLIENTS = 64
LOAD = Load(TINY, context=512, tokens=128)
LEAST_TOKENS = 64
"""Of an answer; `LOAD.tokens` are the most."""
LONG_S = 60.0
"""Of the run in which no client may starve."""
TURN_S = 15.0
WARM_S = 4.0
TURNS = 5
ROUNDS = 500
_CALL_S = 5.0
_RUN_S = 180.0
_TEMPLATE = (
    "{% for message in messages %}{{ message.content }}{{ '' if loop.last else '\\n\\n' }}{% endfor %}"
)
"""What a session gives to a model that has none."""


@dataclass(frozen=True, slots=True)
class Side:
    """An endpoint on the requester's loopback, and what serves it."""

    address: Address
    ranks: frozenset[psutil.Process]


@dataclass(frozen=True, slots=True)
class Stage:
    """Both clusters, up at the same time."""

    machine: Machine
    """The requester, on which the clients run, too."""
    session: Side
    by_hand: Side
    engine: str
    """The socket of the API in the session's head, behind the gateway."""
    daemon: psutil.Process
    """The session's; the gateway runs in it."""

    def load(self, side: Side, seed: str, window_s: float) -> LoadRun:
        """What `CLIENTS` get, the other side's ranks asleep."""
        order = Order(
            {"it": side.address}, TINY.name, (LEAST_TOKENS, LOAD.tokens), seed, CLIENTS, WARM_S, window_s
        )
        before_s = _cpu_s(self.daemon)
        with asleep(self.by_hand.ranks if side is self.session else self.session.ranks):
            found = chat_load.Load(**self._ask(order))
        return LoadRun(found, _cpu_s(self.daemon) - before_s)

    def first_tokens(self) -> FirstTokens:
        """Of single requests to the gateway and to the engine's API behind it, in turns."""
        addresses = {"gateway": self.session.address, "engine": self.engine}
        order = Order(addresses, TINY.name, tokens=(2, 2), seed="first", rounds=ROUNDS)
        with asleep(self.by_hand.ranks):
            return FirstTokens(**self._ask(order))

    def _ask(self, order: Order) -> dict[str, Any]:
        argv = [sys.executable, chat_load.__file__, json.dumps(asdict(order))]
        answer: dict[str, Any] = json.loads(self.machine.run(argv, timeout_s=_RUN_S).check().stdout)
        return answer


@dataclass(frozen=True, slots=True)
class LoadRun:
    found: chat_load.Load
    daemon_cpu_s: float

    @property
    def tok_s(self) -> float:
        return sum(self.found.tokens_each) / self.found.window_s

    @property
    def daemon_us_per_token(self) -> float:
        return 1e6 * self.daemon_cpu_s / self.found.tokens

    @property
    def client_us_per_token(self) -> float:
        return 1e6 * self.found.own_cpu_s / self.found.tokens


@contextmanager
def stage(lan: Lan) -> Iterator[Stage]:
    """A session over two hosts, and `vllm serve` over the same two machines."""
    swarm = Swarm(lan)
    hosts = {host.name: host.machine for host in swarm.start_hosts("alice", "bob")}
    with opened_session(swarm, LOAD, CLIENTS) as (registry, description):
        of_session = ranks()
        layers = tuple(each.end_layer - each.first_layer for each in description.stages)
        workers = [hosts[each.name] for each in description.stages]
        shape = Shape(LOAD.model, layers, LOAD.context, CLIENTS)
        options = [f"--served-model-name={TINY.name}", f"--chat-template={_TEMPLATE}"]
        options += ["--enable-auto-tool-choice", "--tool-call-parser=hermes"]
        with server_by_hand(swarm.requester, workers, shape, options) as address:
            of_hand = ranks() - of_session
            if len(of_session) != len(layers) or len(of_hand) != len(layers):
                raise RuntimeError(f"{len(of_session)} ranks in the session, {len(of_hand)} by hand")
            yield Stage(
                swarm.requester,
                Side(("127.0.0.1", _port(description.endpoint)), of_session),
                Side(address, of_hand),
                _engine_socket(registry),
                _daemon(swarm.requester),
            )


def long_run(it: Stage) -> list[Figure]:
    """Of the session alone: whether all clients get their share."""
    it.load(it.session, "cold", WARM_S)
    run = it.load(it.session, "long", LONG_S)
    least, median, most = (pick(run.found.tokens_each) for pick in (min, statistics.median, max))
    _note("session", f"{run.tok_s:.0f} tok/s over {LONG_S:.0f} s")
    _note("session", f"{least:.0f} to {most:.0f} tokens of a client, median {median:.0f}")
    for error in run.found.errors[:10]:
        _note("session", error)
    return [
        Figure("64 clients, errors in 60 s", len(run.found.errors), "", 0, "at most"),
        Figure("64 clients, most to least tokens of a client", most / max(least, 1), "", 2, "at most"),
    ]


def throughput(it: Stage) -> list[Figure]:
    """Of both sides in turns."""
    it.load(it.by_hand, "cold", WARM_S)
    of_session: list[LoadRun] = []
    of_hand: list[LoadRun] = []
    for turn in range(TURNS):
        sides = [(it.session, of_session), (it.by_hand, of_hand)]
        # Who goes first changes, so that neither always follows the other.
        for side, runs in sides if turn % 2 else reversed(sides):
            runs.append(it.load(side, f"turn {turn}", TURN_S))
    for who, runs in (("session", of_session), ("vllm serve", of_hand)):
        _note(who, "tok/s: " + " ".join(f"{run.tok_s:.0f}" for run in runs))
        client_us = statistics.median(run.client_us_per_token for run in runs)
        errors = sum(len(run.found.errors) for run in runs)
        _note(who, f"{errors} errors; the clients themselves took {client_us:.0f} µs of CPU for a token")
    pairs = zip(of_session, of_hand, strict=True)
    return [
        Figure("64 clients, session", statistics.median(run.tok_s for run in of_session), "tok/s"),
        Figure("64 clients, vllm serve", statistics.median(run.tok_s for run in of_hand), "tok/s"),
        Figure(
            "64 clients, ratio", statistics.median(one.tok_s / other.tok_s for one, other in pairs), "", 0.95
        ),
        Figure(
            "gateway CPU for a token", statistics.median(run.daemon_us_per_token for run in of_session), "µs"
        ),
    ]


def first_token(it: Stage) -> list[Figure]:
    """What the gateway adds to a first token's time. Clients keep their connections, and so the bars are for kept ones."""
    it.first_tokens()  # warm
    found = it.first_tokens()
    figures = []
    for how, bars in (("kept", (10, 25)), ("new", (None, None))):
        through, direct = found.seconds["gateway"][how], found.seconds["engine"][how]
        added = [1e3 * (one - other) for one, other in zip(through, direct, strict=True)]
        name = f"first token, {how} connection"
        figures += [
            Figure(f"{name}, engine", 1e3 * statistics.median(direct), "ms"),
            Figure(f"{name}, gateway adds", statistics.median(added), "ms", bars[0], "at most"),
            Figure(f"{name}, engine, p99", 1e3 * _p99(direct), "ms"),
            Figure(
                f"{name}, gateway adds, p99", 1e3 * (_p99(through) - _p99(direct)), "ms", bars[1], "at most"
            ),
            Figure(f"{name}, p99 of the differences", _p99(added), "ms"),
        ]
    return figures


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def _port(endpoint: str) -> int:
    return int(endpoint.split(":")[2].partition("/")[0])


def _engine_socket(registry: Registry) -> str:
    with grpc.insecure_channel(f"unix:{registry.files(NAME).socket}") as channel:
        stub = session_pb2_grpc.SessionStub(channel)  # type: ignore[no-untyped-call] # generated
        use = stub.Use(session_pb2.UseRequest(), timeout=_CALL_S)
        try:
            return str(Path(next(use).socket).with_name("api.sock"))
        finally:
            use.cancel()


def _daemon(machine: Machine) -> psutil.Process:
    """The one session's on this machine."""
    place = Path(f"/proc/{machine.namespaces.init}/ns/net").readlink()
    (found,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if "edgellm.sessions.daemon" in (process.info["cmdline"] or ())
        and Path(f"/proc/{process.pid}/ns/net").readlink() == place
    )
    return found


def _cpu_s(process: psutil.Process) -> float:
    used = process.cpu_times()
    return used.user + used.system


def _note(who: str, what: str) -> None:
    print(f"{who}: {what}", flush=True)


def main() -> int:
    """Exit status: 0 when every bar holds."""
    parser = argparse.ArgumentParser(prog="benchmarks.gateway", description=__doc__)
    parser.add_argument("--lock", type=Path, help="a file to lock (flock) during each part")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    commit = report.current_commit(REPOSITORY)
    with Lan() as lan:
        with ExitStack() as stack:
            with locked(options.lock):
                it = stack.enter_context(stage(lan))
                figures = long_run(it)
            for part in (throughput, first_token):
                with locked(options.lock):
                    figures += part(it)
        lan.end_all()
    print(f"\n{report.table(figures)}")
    report.write(OUT, report.document(figures, report.this_machine(), commit))
    return 0 if all(figure.holds is not False for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
