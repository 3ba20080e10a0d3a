"""Decoders, each fuzzed in a process of its own: `python -m tests.fuzz.target ENGINE WORKERS`, with jobs (JSON) on its input.

What they need is imported (and instrumented) once, and each process is forked from that. It writes what it found to its job's
path as JSON, again and again, so that it is there however the process ends; and at last what it said and how it ended.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import structlog

from tests.fuzz.mutation import MAX_BYTES, mutate

WARM_UP = 1500
"""Inputs after which memory is measured for the first time: caches of Python and of its libraries fill before."""
REPORT_S = 1.0
GRACE_S = 60.0
MAX_FINDINGS = 10
KEPT_INPUTS = 200


@dataclass
class Finding:
    kind: str
    """"crash" or "slow"."""
    what: str
    input_base64: str


@dataclass
class Result:
    name: str
    engine: str
    inputs: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    rss_before: int = 0
    rss_after: int = 0
    finished: bool = False
    findings: list[Finding] = field(default_factory=list)


class Target:
    """Takes inputs, and notes what became of them."""

    def __init__(self, name: str, engine: str, inputs: int, seconds: float, path: Path) -> None:
        from tests.fuzz.decoder import MAX_INPUT_S, run_one
        from tests.fuzz.decoders import decoder

        self.decoder = decoder(name)
        self.corpus = self.decoder.corpus()
        self.result = Result(name, engine)
        self._run = run_one
        self._limit_s = MAX_INPUT_S
        self._inputs = inputs
        self._path = path
        self._process = psutil.Process()
        self._began = time.monotonic()
        self._until = self._began + seconds
        self._report_at = self._began

    @property
    def done(self) -> bool:
        return self.result.inputs >= self._inputs or time.monotonic() >= self._until

    def take(self, data: bytes) -> None:
        result = self.result
        try:
            spent_s = self._run(self.decoder, data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - any is what is looked for
            self._found("crash", "".join(traceback.format_exception(error))[-3000:], data)
        else:
            result.slowest_s = max(result.slowest_s, spent_s)
            if spent_s > self._limit_s:
                self._found("slow", f"{spent_s:.2f} s of CPU time", data)
        result.inputs += 1
        if result.inputs == WARM_UP:
            result.rss_before = self._process.memory_info().rss
        if result.inputs % 64 == 0 and time.monotonic() >= self._report_at:
            self.write()

    def write(self, *, finished: bool = False) -> None:
        now = time.monotonic()
        self._report_at = now + REPORT_S
        self.result.seconds = now - self._began
        self.result.rss_after = self._process.memory_info().rss
        self.result.finished = finished
        temporary = self._path.with_suffix(".part")
        temporary.write_text(json.dumps(asdict(self.result)))
        temporary.replace(self._path)

    def _found(self, kind: str, what: str, data: bytes) -> None:
        known = {finding.what.splitlines()[-1] for finding in self.result.findings}
        if len(self.result.findings) < MAX_FINDINGS and what.splitlines()[-1] not in known:
            self.result.findings.append(Finding(kind, what, base64.b64encode(data).decode()))
            self.write()


def blindly(target: Target, seed: int) -> None:
    """Without coverage: mutations of the corpus and of their mutations."""
    chance = random.Random(seed)
    pool = list(target.corpus)
    for data in pool:
        target.take(data)
    while not target.done:
        data = mutate(chance.choice(pool), chance, target.corpus)
        target.take(data)
        if chance.random() < 0.02:
            # So that damage adds up; but never away from what is whole.
            if len(pool) >= KEPT_INPUTS:
                pool.pop(chance.randrange(len(target.corpus), len(pool)))
            pool.append(data)
    target.write(finished=True)


def by_coverage(target: Target, seed: int, path: Path) -> None:
    """With atheris: what reaches new code is kept and changed further."""
    import atheris

    own = random.Random(seed)

    def take(data: bytes) -> None:
        target.take(data)
        if target.done:
            target.write(finished=True)
            os._exit(0)

    def change(data: bytes, max_size: int, chosen: int) -> bytes:
        if own.random() < 0.2:
            return bytes(atheris.Mutate(data, max_size))
        base = own.choice(target.corpus) if own.random() < 0.1 else data
        return mutate(base, random.Random(chosen), target.corpus)[:max_size]

    seeds = path.with_suffix(".corpus")
    seeds.mkdir(exist_ok=True)
    for number, data in enumerate(target.corpus):
        (seeds / str(number)).write_bytes(data)
    atheris.Setup(
        [
            sys.argv[0],
            f"-seed={seed}",
            f"-max_len={MAX_BYTES}",
            "-timeout=30",
            "-rss_limit_mb=0",
            "-print_final_stats=0",
            "-verbosity=0",
            f"-artifact_prefix={path.with_suffix('')}-",
            str(seeds),
        ],
        take,
        custom_mutator=change,
    )
    atheris.Fuzz()


@dataclass(frozen=True)
class Job:
    name: str
    inputs: int
    seconds: float
    seed: int
    path: str


@dataclass(frozen=True)
class _Running:
    job: Job
    until: float


def run_all(jobs: list[Job], engine: str, workers: int) -> None:
    """Runs them, so many at a time. One that runs on for `GRACE_S` after its time is killed."""
    waiting, running = list(jobs), dict[int, _Running]()
    while waiting or running:
        while waiting and len(running) < workers:
            job = waiting.pop(0)
            running[_forked(job, engine)] = _Running(job, time.monotonic() + job.seconds + GRACE_S)
        for pid, each in tuple(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done and time.monotonic() < each.until:
                continue
            if not done:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            del running[pid]
            ended = os.waitstatus_to_exitcode(status) if done else "it hangs"
            Path(each.job.path).with_suffix(".ended").write_text(str(ended))
        time.sleep(0.01)


def _forked(job: Job, engine: str) -> int:
    """The id of a process that fuzzes one decoder."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        path = Path(job.path)
        with path.with_suffix(".said").open("wb") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        target = Target(job.name, engine, job.inputs, job.seconds, path)
        if engine == "atheris":
            by_coverage(target, job.seed, path)
        else:
            blindly(target, job.seed)
        status = 0
    except BaseException:  # noqa: BLE001 - the other process goes on in no way
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    engine, workers = sys.argv[1], int(sys.argv[2])
    jobs = [Job(**job) for job in json.load(sys.stdin)]
    # What a decoder logs is for people.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["edgellm"]):
            import tests.fuzz.decoders
    else:
        import tests.fuzz.decoders  # noqa: F401
    run_all(jobs, engine, workers)


if __name__ == "__main__":
    main()
