"""`python -m edgellm.console.tethered PARENT COMMAND...`: becomes COMMAND, which is asked to end when its parent dies.

The kernel watches the thread that started it, so that has to be one that lives as long as the parent: its main thread.
"""

from __future__ import annotations

import os
import signal
import sys

from edgellm.cells.fences import die_with_parent


def main() -> None:
    parent, *command = sys.argv[1:]
    die_with_parent(signal.SIGTERM)
    if os.getppid() != int(parent):
        # It died before the kernel was told.
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
