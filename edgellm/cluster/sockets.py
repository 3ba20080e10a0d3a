"""The sockets that a head's cell makes in a directory which it can write to, as the node uses them.

The cell is another's code as soon as one of its cluster's hosts is hostile. It could put a link to some other service's socket
where its own was, and have the node send prompts there. So the node takes a second name for each socket, in a directory that
the cell does not see, makes sure that it is a socket, and connects to that one only.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from edgellm.errors import CellError


def keep_socket(made: Path, kept: Path) -> None:
    """Makes `kept` a name of the socket `made`, as it is now. Raises CellError where that is none; then `kept` is as it was."""
    taken = kept.with_suffix(".new")
    try:
        os.link(made, taken, follow_symlinks=False)
        found = taken.lstat()
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.getuid():
            raise CellError(f"the cell put something else in the place of its socket {made.name}")
        taken.replace(kept)
    except OSError as error:
        raise CellError(f"the cell's socket {made.name} cannot be used: {error.strerror}") from error
    finally:
        # It stays where both are names of the same socket already.
        taken.unlink(missing_ok=True)
