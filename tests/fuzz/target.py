"""One decoder, fuzzed in this process: `python -m tests.fuzz.target NAME INPUTS SECONDS SEED ENGINE RESULT`.

Writes what it found to RESULT as JSON, again and again, so that it is there however the process ends.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from tests.fuzz.mutation import MAX_BYTES, mutate

WARM_UP = 1500
"""Inputs after which memory is measured for the first time: caches of Python and of its libraries fill before."""
REPORT_S = 1.0
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


def by_coverage(name: str, inputs: int, seconds: float, seed: int, path: Path) -> None:
    """With atheris: what reaches new code is kept and changed further."""
    import os

    import atheris

    with atheris.instrument_imports(include=["edgellm"]):
        target = Target(name, "atheris", inputs, seconds, path)
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


def main() -> None:
    name, inputs, seconds, seed, engine, path = sys.argv[1:]
    if engine == "atheris":
        by_coverage(name, int(inputs), float(seconds), int(seed), Path(path))
    else:
        blindly(Target(name, "mutation", int(inputs), float(seconds), Path(path)), int(seed))


if __name__ == "__main__":
    main()
