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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MAX_GROWTH_BYTES = 50 << 20
OUT = Path(__file__).parents[2] / "benchmarks" / "out" / "fuzz.json"
START_S = 6.0
"""What a process needs before its first input."""
GRACE_S = 60.0
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
    net_s = max(1.0, seconds - START_S * len(chosen) / workers) * workers
    most = max(2000, round(inputs * MOST_SHARE)) if len(chosen) > 8 else inputs
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="edgellm-fuzz-") as directory,
        ThreadPoolExecutor(workers) as pool,
    ):

        def one(number: int) -> dict[str, Any]:
            each = chosen[number]
            path = Path(directory) / f"{number}.json"
            own_s = net_s * each.share / shares
            argv = [each.name, str(most), str(own_s), str(seed + number), engine, str(path)]
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "tests.fuzz.target", *argv],
                    capture_output=True,
                    text=True,
                    timeout=own_s + GRACE_S,
                    check=False,
                )
                said, status = (done.stdout + done.stderr)[-3000:], done.returncode
            except subprocess.TimeoutExpired:
                said, status = "it hangs", -1
            result: dict[str, Any] = {"name": each.name, "inputs": 0, "findings": []}
            if path.exists():
                result = json.loads(path.read_text())
            if status != 0 or not result.get("finished"):
                result["findings"].append({"kind": "ended", "what": f"exit status {status}\n{said}"})
            result["growth_bytes"] = (
                result["rss_after"] - result["rss_before"] if result.get("rss_before") else 0
            )
            if result["growth_bytes"] > MAX_GROWTH_BYTES:
                result["findings"].append(
                    {"kind": "memory", "what": f"grew by {result['growth_bytes']} bytes"}
                )
            return result

        results = list(pool.map(one, range(len(chosen))))
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
