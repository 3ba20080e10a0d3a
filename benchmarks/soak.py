"""Mixed load for half an hour, and what the nodes have grown by: `make bench BENCH=soak` (root).

Two hosts lend to a session, which is asked all the time, by clients of which some leave in the middle, and to questions of
their own that bring clusters up and down; other peers join, ask, provide, babble, whisper, leave streams open and vanish. In
cycles: trouble, then calm, in which memory and descriptors of every node are measured. EDGELLM_SOAK_MINUTES says how long,
30 where nothing is said. Writes benchmarks/out/soak.json; exit status 1 when a bar is missed.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

from benchmarks.report import Figure, current_commit, document, table, this_machine, write
from edgellm.engine.question import question_to_wire
from edgellm.errors import EdgeError
from edgellm.sessions.client import ask_session, session_state
from edgellm.sessions.registry import Registry
from edgellm.types.request import Question, Sampling
from tests.system.lan import Lan
from tests.system.machine import REPOSITORY
from tests.system.process import Process, descendants
from tests.system.swarm import ASK_TIMEOUT_S, Swarm

OUT = REPOSITORY / "benchmarks" / "out" / "soak.json"
TROUBLE = REPOSITORY / "tests" / "system" / "soak_peers.py"
MINUTES = float(os.environ.get("EDGELLM_SOAK_MINUTES", "30"))
CYCLE_S = 45.0
CALM_S = 15.0
"""Longer than any stream or handshake of a peer that is gone is kept."""
WARM_UP_SHARE = 0.2
MOST_GROWTH = 0.05
MOST_DESCRIPTORS = 4
"""More at the end than after warm-up: a host's own connections may have another number then."""
PROMPT = "The with statement is used"
NAME = "soak"


@dataclass
class Watched:
    """A node, and what it held in each calm."""

    name: str
    process: psutil.Process
    rss_bytes: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def measure(self) -> None:
        self.rss_bytes.append(self.process.memory_info().rss)
        self.descriptors.append(self.process.num_fds())

    def growth(self) -> float:
        """From after warm-up to the end, as a share; the median of a few calms each."""
        begun, ended = _ends(self.rss_bytes)
        return ended / begun - 1

    def more_descriptors(self) -> float:
        begun, ended = _ends(self.descriptors)
        return ended - begun


def _ends(values: list[int]) -> tuple[float, float]:
    warm = values[max(1, round(len(values) * WARM_UP_SHARE)) :] or values
    few = max(1, len(warm) // 5)
    return statistics.median(warm[:few]), statistics.median(warm[-few:])


@dataclass
class Asked:
    """Answers of the session, counted from several threads."""

    answers: int = 0
    left: int = 0
    failed: list[str] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def asking(registry: Registry, calm: threading.Event) -> Iterator[Asked]:
    """Two clients that ask the session one question after another while the body runs; every third leaves in the middle."""
    asked, stop = Asked(), threading.Event()

    def ask() -> None:
        number = 0
        while not stop.is_set():
            if calm.is_set():
                time.sleep(0.2)
                continue
            number += 1
            leaves = number % 3 == 0
            try:
                text = _ask(registry, most=5 if leaves else None)
            except (EdgeError, OSError) as error:
                with asked.lock:
                    asked.failed.append(str(error)[:300])
                time.sleep(1)
                continue
            with asked.lock:
                if leaves:
                    asked.left += 1
                else:
                    asked.answers += 1
                    asked.texts.add(text)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def _ask(registry: Registry, most: int | None) -> str:
    sampling = Sampling(max_tokens=48, temperature=0.0)
    request = question_to_wire(Question(text=PROMPT, sampling=sampling), secrets.token_hex(8))
    pieces: list[str] = []
    for event in ask_session(registry, NAME, request):
        pieces.append(event.text)
        if most is not None and len(pieces) >= most:
            break
    return "".join(pieces)


def main() -> int:
    seconds = MINUTES * 60
    with Lan() as lan:
        swarm = Swarm(lan)
        lent = ("--max-leases", "3", "--quota", "1000h/day")
        names = ("alice", "bob")
        hosts = [swarm.start_host(swarm.machine(name), *lent, memory="4GiB") for name in names]
        for host in hosts:
            host.wait_ready()
        carol = swarm.requester
        carol.run(
            swarm.command("session open", "--model", "tiny", "--name", NAME, "--pp", "2", "--idle", "12h"),
            timeout_s=ASK_TIMEOUT_S,
        ).check()
        # Its files are where the requester's user has them, seen from outside.
        registry = Registry(
            carol.runtime / f"edgellm-{os.getuid()}" / "s", carol.home / ".local/state/edgellm/sessions"
        )
        if session_state(registry, NAME).description is None:
            raise RuntimeError("the session does not answer")
        [meeting] = [process for process in swarm.meeting_point.processes if process.returncode is None]
        nodes = [
            Watched("meeting point", _program(meeting)),
            *(Watched(f"host {host.name}", _program(host.process)) for host in hosts),
            Watched("session", _session_daemon(carol.namespaces.init)),
        ]
        try:
            asked, trouble, questions = _load(swarm, registry, nodes, seconds)
        finally:
            carol.run(["edgellm", "session", "close", NAME], timeout_s=60)
        lan.end_all()
    figures = _figures(nodes, asked, trouble, questions)
    print(table(figures))
    content = document(figures, this_machine(), current_commit(REPOSITORY))
    content["minutes"] = MINUTES
    content["nodes"] = {
        node.name: {"rss_bytes": node.rss_bytes, "descriptors": node.descriptors} for node in nodes
    }
    content["failed"] = asked.failed[:20] + [text for text in questions if text]
    write(OUT, content)
    return 1 if any(figure.holds is False for figure in figures) else 0


def _load(
    swarm: Swarm, registry: Registry, nodes: list[Watched], seconds: float
) -> tuple[Asked, dict[str, int], list[str]]:
    """So long; what was asked, what other peers did, and what became of questions of their own ("": answered)."""
    mallory = swarm.machine("mallory")
    alice = next(machine for machine in swarm.lan.machines if machine.name == "alice")
    peer = swarm.peers()["alice"]["peer"]
    targets = (swarm.address, f"/ip4/{alice.address}/tcp/4001/p2p/{peer}")
    calm, questions, trouble = threading.Event(), [], dict[str, int]()
    until = time.monotonic() + seconds
    with asking(registry, calm) as asked:
        while time.monotonic() < until:
            began = time.monotonic()
            calm.clear()
            troubles = [
                mallory.start(
                    [sys.executable, str(TROUBLE), target, str(CYCLE_S), "3600"],
                    env={"PYTHONPATH": str(REPOSITORY)},
                )
                for target in targets
            ]
            # A cluster of its own in every cycle: leases, cells and carriers come and go.
            done = swarm.requester.run(
                swarm.ask(PROMPT, "--fresh", "--raw", "--max-tokens", "24"), timeout_s=ASK_TIMEOUT_S
            )
            questions.append("" if done.returncode == 0 else done.stderr[-400:])
            for process in troubles:
                with suppress(TimeoutError):
                    process.wait_for(r"^\{.*\}$", max(5.0, CYCLE_S + 30 - (time.monotonic() - began)))
                    _add(trouble, process)
                process.stop()
            calm.set()
            time.sleep(CALM_S)
            for node in nodes:
                node.measure()
            print(
                f"{time.monotonic() - until + seconds:6.0f} s  "
                + "  ".join(
                    f"{node.name} {node.rss_bytes[-1] / 1e6:.1f} MB {node.descriptors[-1]} fd"
                    for node in nodes
                )
                + f"  {asked.answers} answers, {asked.left} left, {len(asked.failed)} failed, questions {questions.count('')}",
                flush=True,
            )
    return asked, trouble, questions


def _add(trouble: dict[str, int], process: Process) -> None:
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    for way, count in json.loads(lines[-1]).items() if lines else ():
        trouble[way] = trouble.get(way, 0) + count


def _program(process: Process) -> psutil.Process:
    assert process.pid is not None
    return psutil.Process(process.pid)


def _session_daemon(init: int) -> psutil.Process:
    for pid in descendants(init):
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if "edgellm.sessions.daemon" in process.cmdline():
                return process
    raise RuntimeError("no daemon of a session runs")


def _figures(
    nodes: list[Watched], asked: Asked, trouble: dict[str, int], questions: list[str]
) -> list[Figure]:
    figures = []
    for node in nodes:
        figures += [
            Figure(f"{node.name}: growth", node.growth() * 100, "%", MOST_GROWTH * 100, "at most"),
            Figure(
                f"{node.name}: more descriptors", node.more_descriptors(), "", MOST_DESCRIPTORS, "at most"
            ),
            Figure(f"{node.name}: memory at the end", node.rss_bytes[-1] / 1e6, "MB"),
        ]
    figures += [
        Figure("answers of the session", asked.answers, "", 10 * MINUTES),
        Figure("different answers to one greedy question", len(asked.texts), "", 1, "at most"),
        Figure("clients that left in the middle", asked.left, ""),
        Figure("questions to the session that failed", len(asked.failed), "", 0, "at most"),
        Figure("clusters brought up and down", questions.count(""), "", 1),
        Figure("clusters that failed", sum(map(bool, questions)), "", 0, "at most"),
        Figure("things that other peers did", sum(trouble.values()), "", 20 * MINUTES),
    ]
    return figures


if __name__ == "__main__":
    sys.exit(main())
