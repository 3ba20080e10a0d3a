"""Program that gives up in a sandbox what a cell gives up: `python -m edgellm.doctor.fence_trial`.

Prints one line of JSON: `{"step": "fences" | "seccomp" | "done", "reason": ...}`; "done" means that the filter is in place and
a call that it forbids was refused.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

from edgellm.cells import fences

_IN_FILTER_MODE, _SET = "2", "1"


def main() -> int:
    """0 when everything worked."""
    try:
        fences.enter_limits(0, 1 << 30)
        fences.enter_fences()
    except KeyError as error:
        return _say("fences", f"no filter for {error.args[0]} machines")
    except OSError as error:
        return _say("fences", error.strerror or str(error))
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    if (status.get("Seccomp"), status.get("NoNewPrivs")) != (_IN_FILTER_MODE, _SET):
        return _say("seccomp", "the kernel runs without the filter")
    try:
        os.chroot("/")
    except OSError as error:
        return _say("done", "") if error.errno == errno.EPERM else _say("seccomp", str(error))
    return _say("seccomp", "a forbidden call was let through")


def _say(step: str, reason: str) -> int:
    print(json.dumps({"step": step, "reason": reason}))
    return 0 if step == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
