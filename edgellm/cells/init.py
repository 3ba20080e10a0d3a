"""First program of a cell: `python -I -m edgellm.cells.init OPTIONS -- ENGINE...`.

Makes the network, enters the fences, starts the engine and then serves as its redirector until it ends. The
engine inherits stdout, so its events need no relay. Standard library only: this starts in a fraction of a second.

Before the engine there is exactly one line on stdout: {"event": "cell_ready"}, or
{"event": "cell_failed", "reason": ..., "step": ...} with exit status 125.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from edgellm.cells import fences, network
from edgellm.overlay.redirector import Redirector

SETUP_FAILED = 125
_OOM_SCORE = "500"


def main() -> int:
    """Runs the cell; returns the engine's exit status, 128 + n if signal n ended it, 125 if setup failed."""
    options = _parse(sys.argv[1:])
    step = "fence"
    try:
        os.nice(options.nice)
        # When memory runs out the engine goes first, not the node.
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
        redirector = None
        if options.fabric == "overlay":
            step = "network"
            if not options.sandboxed:
                network.enter_own_network()
            network.set_up_loopback()
            redirector = Redirector(options.address, options.subnet)
            network.set_up_overlay(options.address, options.subnet, redirector.port)
            step = "overlay"
            carrier = options.runtime / "overlay.sock"
            if carrier.exists():
                redirector.join(carrier)
        step = "fence"
        fences.enter_limits(options.processes, options.file_bytes)
        fences.enter_fences()
        if not options.sandboxed:
            # After the user namespace: a change of credentials clears the death signal.
            fences.die_with_parent(signal.SIGTERM)
            fences.adopt_orphans()
        step = "engine"
        if shutil.which(options.engine[0]) is None:
            raise FileNotFoundError(f"there is no program {options.engine[0]}")
        _report(event="cell_ready")
        engine = subprocess.Popen(
            options.engine, stdin=subprocess.DEVNULL, close_fds=False, preexec_fn=fences.die_with_parent
        )
    except (OSError, subprocess.SubprocessError) as error:
        _report(event="cell_failed", step=step, reason=str(error))
        return SETUP_FAILED
    if not options.sandboxed:
        signal.signal(signal.SIGTERM, _end_all)
    if redirector is not None:
        redirector.serve_until_exit(engine.pid)
    status = engine.wait()
    if not options.sandboxed:
        _kill_descendants()
    return status if status >= 0 else 128 - status


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgellm.cells.init")
    parser.add_argument("--address")
    parser.add_argument("--subnet", default="10.88.0.0/16")
    parser.add_argument("--fabric", choices=("overlay", "direct"), required=True)
    parser.add_argument("--runtime", type=Path, required=True)
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--file-bytes", type=int, required=True)
    parser.add_argument("--unsandboxed", dest="sandboxed", action="store_false")
    parser.add_argument("engine", nargs="+")
    return parser.parse_args(arguments)


def _report(**event: str) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _end_all(_number: int, _frame: FrameType | None) -> None:
    _kill_descendants()
    os._exit(128 + signal.SIGTERM)


def _kill_descendants() -> None:
    """Without a PID namespace: kill children until none is left. Orphans have become ours (subreaper)."""
    while True:
        for child in _children():
            os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in path.read_text(encoding="ascii").split()]


if __name__ == "__main__":
    sys.exit(main())
