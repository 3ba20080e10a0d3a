"""All decoders, several at a time: `python -m tests.fuzz [--inputs 1000000] [--seconds 280] [--only NAME]`.

Exit status 1 when one crashed, hung, kept memory, or fewer inputs were tried than asked for. Writes benchmarks/out/fuzz.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.fuzz.target import Job

MAX_GROWTH_BYTES = 50 << 20
OUT = Path(__file__).parents[2] / "benchmarks" / "out" / "fuzz.json"
START_S = 12.0
"""What it takes to import and instrument everything."""
EACH_START_S = 0.3
"""What each decoder's process needs before its first input."""
MOST_SHARE = 0.12
"""Of all inputs, for one decoder: quick ones shall not make up for slow ones."""


def run(
    names: list[str] | None = None, *, inputs: int, seconds: float, workers: int, seed: int
) -> dict[str, Any]:
    """Fuzzes the decoders (all when None) for `seconds` together and reports."""
    from tests.fuzz.decoders import DECODERS

    chosen = [each for each in DECODERS if names is None or each.name in names]
    engine = "atheris" if importlib.util.find_spec("atheris") else "mutation"
    shares = sum(each.share for each in chosen)
    net_s = max(1.0, seconds - START_S - EACH_START_S * len(chosen) / workers) * workers
    most = max(2000, round(inputs * MOST_SHARE)) if len(chosen) > 8 else inputs
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgellm-fuzz-") as directory:
        paths = [Path(directory) / f"{number}.json" for number in range(len(chosen))]
        jobs = [
            Job(each.name, most, net_s * each.share / shares, seed + number, str(paths[number]))
            for number, each in enumerate(chosen)
        ]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.target", engine, str(workers)],
            input=json.dumps([asdict(job) for job in jobs]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        results = [_result(each.name, path) for each, path in zip(chosen, paths, strict=True)]
    if done.returncode != 0:
        raise RuntimeError(f"tests.fuzz.target: exit status {done.returncode}\n{done.stderr[-3000:]}")
    total = sum(result["inputs"] for result in results)
    return {
        "inputs": total,
        "asked_inputs": inputs,
        "seconds": time.monotonic() - began,
        "workers": workers,
        "engine": engine,
        "decoders": results,
        "findings": sum(len(result["findings"]) for result in results),
        "slowest_input_s": max((result.get("slowest_s", 0.0) for result in results), default=0.0),
        "most_growth_bytes": max((result["growth_bytes"] for result in results), default=0),
    }


def _result(name: str, path: Path) -> dict[str, Any]:
    """What became of one decoder, judged."""
    result: dict[str, Any] = {"name": name, "inputs": 0, "findings": []}
    if path.exists():
        result = json.loads(path.read_text())
    ended, said = path.with_suffix(".ended"), path.with_suffix(".said")
    how = ended.read_text() if ended.exists() else "it was not tried"
    if how != "0" or not result.get("finished"):
        last = said.read_text(errors="replace")[-3000:] if said.exists() else ""
        result["findings"].append({"kind": "ended", "what": f"exit status {how}\n{last}"})
    before = result.get("rss_before")
    result["growth_bytes"] = result["rss_after"] - before if before else 0
    if result["growth_bytes"] > MAX_GROWTH_BYTES:
        result["findings"].append({"kind": "memory", "what": f"grew by {result['growth_bytes']} bytes"})
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all decoders together")
    parser.add_argument("--seconds", type=float, default=280.0)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", help="a decoder's name; may be repeated")
    options = parser.parse_args()
    report = run(
        options.only,
        inputs=options.inputs,
        seconds=options.seconds,
        workers=options.workers,
        seed=options.seed,
    )
    for result in report["decoders"]:
        print(
            f"{result['name']:20} {result['inputs']:9,} inputs  {result.get('seconds', 0):6.1f} s  "
            f"slowest {result.get('slowest_s', 0) * 1e3:6.1f} ms  grew {result['growth_bytes'] / 1e6:6.1f} MB  "
            f"{len(result['findings']) or 'no'} findings"
        )
        for finding in result["findings"]:
            print(
                f"--- {finding['kind']} {finding.get('input_base64', '')}\n{finding['what']}", file=sys.stderr
            )
    print(
        f"{report['inputs']:,} inputs in {report['seconds']:.0f} s by {report['engine']}: {report['findings']} findings"
    )
    if options.only is None:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if report["findings"] or (options.only is None and report["inputs"] < options.inputs) else 0


if __name__ == "__main__":
    sys.exit(main())
